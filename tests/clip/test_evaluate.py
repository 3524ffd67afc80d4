"""`clip-jax evaluate` and `train-jax evaluate` of CLIPs: results, tables, resuming, cached features, mistakes."""

import csv
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import train_jax
from clip_jax import cli, clip, encoders, evaluate, probes
from train_jax import metrics
from train_jax.data.errors import DataError
from train_jax.evaluation import command as evaluate_command
from train_jax.evaluation.results import FILE, read_evaluations

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs `clip-jax evaluate` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*arguments):
        try:
            code = cli.main(["evaluate", *map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return evaluate


@pytest.fixture
def shapes(tiny) -> tuple:
    """Words that name the data of the run `tiny`."""
    return ("--data", "shapes/32", "--data-dir", tiny[0].data.data_dir, "--batch-size", "40")


def refuse(*arguments, **options):
    raise AssertionError("computed again")


def one_line(error: str) -> str:
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error, error
    return error


def test_a_run_has_the_results_of_its_training(run, shapes, tiny):
    code, out, _ = run(tiny[1], *shapes, "--templates", "a {}")
    assert code == 0
    (row,) = read_evaluations(FILE)
    trained = metrics.read(tiny[1])
    for name in ("top1", "top5", "mean_per_class", "images"):
        assert row["metrics"][name] == pytest.approx(trained.last(f"test/{name}")), name
    assert (row["model"], row["family"], row["evaluator"]) == (str(tiny[1]), "clip", "zero_shot")
    assert row["model_id"] == clip.load(tiny[1]).fingerprint and row["options"]["templates"] == ["a {}"]
    top1, low, high = (100 * row["metrics"][f"top1{name}"] for name in ("", "/low", "/high"))
    assert f"{top1:.1f} [{low:.1f}, {high:.1f}]" in out.splitlines()[-1]


def test_many_models_and_tasks_are_one_table_whose_results_are_computed_once(run, shapes, tiny, monkeypatch):
    """Public weights beside a run. The second command reads the file alone."""
    words = (tiny[1], GOLDEN / "hf-clip", *shapes, "--tasks", "zero_shot,retrieval,knn,few_shot", "--shots", "1")
    code, out, err = run(*words, "--csv")
    assert code == 0 and len(err.splitlines()) == 8
    table = list(csv.DictReader(io.StringIO(out)))
    rows = read_evaluations(FILE)
    assert [row["model"] for row in table] == [str(tiny[1]), str(GOLDEN / "hf-clip")]
    for row in rows:
        cells = next(cells for cells in table if cells["model"] == row["model"])
        for name, value in row["metrics"].items():
            assert float(cells[f"shapes/32:test {row['evaluator']} {name}"]) == value
    monkeypatch.setattr(encoders.Encoders, "_make_encoder", staticmethod(lambda *arguments: refuse))
    code, again, err = run(*words, "--csv")
    assert code == 0 and again == out and err.count(f"already in {FILE}") == 8
    assert read_evaluations(FILE) == rows
    code, markdown, _ = run(*words, "--md")
    assert code == 0 and markdown.splitlines()[1] == "| --- |" + " ---: |" * 6
    code, text, _ = run(*words)
    assert code == 0 and len(text.splitlines()) == 5 and "few_shot" in text.splitlines()[1]


def test_an_interrupted_command_goes_on_after_the_last_result(run, shapes, tiny):
    words = (tiny[1], *shapes, "--tasks", "zero_shot,knn,retrieval")
    with mock.patch.object(probes.KNN, "__call__", side_effect=KeyboardInterrupt):
        code, out, err = run(*words)
    assert code == 130 and out == "" and "interrupted; the same command continues" in err
    (first,) = read_evaluations(FILE)
    code, _, err = run(*words)
    rows = read_evaluations(FILE)
    assert code == 0 and rows[0] == first and [row["evaluator"] for row in rows] == ["zero_shot", "knn", "retrieval"]
    assert err.count(f"already in {FILE}") == 1


def test_features_are_computed_once_for_all_tasks_and_commands(run, shapes, tiny, monkeypatch):
    """Of each image, whatever evaluates it; a damaged file is an error that names it. Few scenes have labels."""
    encoded, encode = [], encoders.FeatureCache.encode

    def count(self, compute, records):
        return encode(self, lambda missing: encoded.append(len(missing)) or compute(missing), records)

    monkeypatch.setattr(encoders.FeatureCache, "encode", count)
    words = (tiny[1], *shapes, "--features", "features")
    assert run(*words, "--tasks", "zero_shot,retrieval,knn")[0] == 0
    assert encoded == [27, 13, 35], "labelled images of the split, the others, labelled images to learn from"
    monkeypatch.setattr(encoders.Encoders, "_make_encoder", staticmethod(lambda *arguments: refuse))
    code, _, err = run(*words, "--tasks", "knn", "--again")
    assert code == 0 and encoded == [27, 13, 35], err
    for file in Path("features").glob("*/features.npy"):
        file.write_bytes(file.read_bytes()[:100])
    code, _, err = run(*words, "--tasks", "few_shot", "--shots", "1")
    assert code == 2 and "features.npy does not hold the features" in err.splitlines()[-1]


def test_features_that_an_interruption_left_are_used(tmp_path, monkeypatch):
    """Rows are on disk chunk by chunk."""
    monkeypatch.setattr("clip_jax.feature_cache._CHUNK", 4)
    monkeypatch.setattr("clip_jax.feature_cache.compute_fingerprint", lambda source: "source")
    source = encoders.Source("some", list(range(10)))
    values = np.arange(20, dtype=np.float32).reshape(10, 2)

    def encode_two_chunks(missing):
        if 8 in missing.indices:
            raise KeyboardInterrupt
        return values[missing.indices]

    everything = encoders.Subset(source, range(10))
    with pytest.raises(KeyboardInterrupt):
        encoders.FeatureCache("model", tmp_path).encode(encode_two_chunks, everything)
    asked = []
    cache = encoders.FeatureCache("model", tmp_path)
    features = cache.encode(lambda missing: asked.extend(missing.indices) or values[missing.indices], everything)
    np.testing.assert_array_equal(features, values)
    assert asked == [8, 9]
    np.testing.assert_array_equal(cache.encode(refuse, encoders.Subset(source, [7, 0, 7])), values[[7, 0, 7]])
    with pytest.raises(DataError, match="known.npy does not hold the features of this model and source"):
        monkeypatch.setattr("clip_jax.feature_cache.compute_fingerprint", lambda source: "source")
        encoders.FeatureCache("model", tmp_path).encode(encode_two_chunks, encoders.Subset(encoders.Source("x", [0]), [0]))


def test_unreadable_images_are_an_error_unless_a_share_is_allowed(run, tiny, pairs):
    """Finished results stay."""
    shutil.copytree(pairs, "good")
    Path(pairs, "3.png").write_bytes(b"no picture")
    words = (tiny[1], "--data", "folder:good", f"folder:{pairs}", "--split", "all", "--batch-size", "8")
    code, out, err = run(*words)
    assert code == 2 and out == "" and "3.png" in err.splitlines()[-1]
    assert [row["source"] for row in read_evaluations(FILE)] == ["folder:good"]
    code, out, err = run(*words, "--max-broken", "0.3")
    assert code == 0 and "retrieval" in out
    assert [row["metrics"]["images"] for row in read_evaluations(FILE)] == [5, 4]


@pytest.mark.parametrize(
    "words, message",
    [
        (("--data", "digits", "--tasks", "zero"), "--tasks zero: tasks are zero_shot, retrieval,"),
        (("--data", "no-source"), "there is no source 'no-source'"),
        (("--data", "digits", "--templates", "a thing"), "template 'a thing' has no {}"),
        (("--data", "digits", "--shots", "0"), "--shots 0 must be numbers of 1 and more"),
        (("--data", "digits", "--batch-size", "0"), "zero_shot: batch_size = 0; it must be at least 1"),
        (("--data", "digits", "--max-broken", "1"), "--max-broken 1.0 must be in [0, 1)"),
        (("--data", "digits", "--out", "missing/file"), "there is no folder missing"),
        (("--data", "digits", "--split", "tset"), "tset"),
    ],
)
def test_mistakes_are_one_line_and_no_result(run, tiny, words, message):
    code, out, err = run(tiny[1], *words)
    assert code == 2 and message in err.splitlines()[-1] and out == "" and not Path(FILE).exists()
    assert "Traceback" not in err


def test_a_missing_model_is_one_line(run, tmp_path):
    code, _, err = run(tmp_path / "no-model", "--data", "digits")
    assert code == 2 and "no such file or folder" in one_line(err)


# ---------------------------------------------------------------------------------------------------------------------
# train-jax evaluate


def evaluate_run(*arguments, capsys):
    code = evaluate_command.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_train_jax_evaluates_a_run(tiny, tmp_path, capsys, monkeypatch):
    """As its training did, also on other data and by other evaluators; a second command computes nothing."""
    words = (tiny[1], "--evals=test,knn", "--config.evals.knn.k=3", f"--out={tmp_path / 'results.jsonl'}")
    code, out, err = evaluate_run(*words, capsys=capsys)
    assert code == 0, err
    knn, test = read_evaluations(tmp_path / "results.jsonl")
    trained = train_jax.train.read(tiny[1])
    expected = {name: trained.last(f"test/{name}") for name in ("top1", "top5", "mean_per_class", "images")}
    assert test["metrics"] == pytest.approx(expected) and test["step"] == 3 and test["family"] == "clip"
    assert knn["options"]["k"] == 3 and knn["evaluator"] == "knn" and knn["source"] == "shapes/32"
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        f"{tiny[1]} (step 3) {name} on shapes/32" for name in ("knn", "test")
    ]
    monkeypatch.setattr("train_jax.evaluation.evaluators.Evaluations.run", refuse)
    code, out, _ = evaluate_run(*words, capsys=capsys)
    assert code == 0 and out.count("(already in the file)") == 2
    assert len(read_evaluations(tmp_path / "results.jsonl")) == 2


def test_results_are_in_the_run_directory(tiny, tmp_path, capsys):
    shutil.copytree(tiny[1], tmp_path / "run")
    code, _, err = evaluate_run(tmp_path / "run", "--evals=test", "--split=novel", "--step=2", capsys=capsys)
    assert code == 0, err
    (row,) = read_evaluations(tmp_path / "run")
    assert row["split"] == "novel" and row["step"] == 2 and row["metrics"]["images"] == 10
    assert json.loads((tmp_path / "run" / FILE).read_text())["data_id"]


def test_public_weights_are_evaluated_as_a_run_of_no_updates(tiny, tmp_path, capsys):
    """The family is told by the files; results are those of `clip-jax evaluate`."""
    data = ("--data=shapes/32", f"--config.data.data_dir={tiny[0].data.data_dir}", f"--out={tmp_path / 'results.jsonl'}")
    code, _, err = evaluate_run(GOLDEN / "hf-clip", "--evals=zero_shot", *data, capsys=capsys)
    assert code == 0, err
    (row,) = read_evaluations(tmp_path / "results.jsonl")
    benchmark = evaluate.Benchmark(["shapes/32"], ["zero_shot"], {}, {"data_dir": tiny[0].data.data_dir})
    file = evaluate.EvaluationFile(tmp_path / "other.jsonl")
    ((other, _),) = evaluate.evaluate([str(GOLDEN / "hf-clip")], benchmark, file)
    assert row["metrics"] == pytest.approx({name: other["metrics"][name] for name in row["metrics"]})
    assert row["step"] is None and row["family"] == "clip"


@pytest.mark.parametrize(
    "words, message",
    [
        (("RUN", "--evals=tset"), "there is no evaluator 'tset'; the config has test, and the types of this task are zero"),
        (("RUN", "--family=vqgan"), "is a run of 'clip_jax.task'"),
        (("RUN", "--config.evals.test.templates=a"), "template 'a' has no {}"),
        (("RUN", "--config.evals.test.kind=a"), "config.evals.test.kind is not an option"),
        (("RUN", "--step=77"), "holds no checkpoint of step 77"),
        (("RUN", "--data=no-source"), "there is no source 'no-source'"),
        (("HF", "--evals=zero_shot"), "add --evals=… and --data=…"),
        (("HF", "--evals=zero_shot", "--data=digits", "--step=3"), "so it has no checkpoints by step"),
        (("HF", "--evals=zero_shot", "--data=digits"), "add --out=FILE"),
        (("HF", "--evals=zero_shot", "--data=digits", "--family=dalle"), "is not a DALL-E"),
        (("none", "--evals=zero_shot", "--data=digits"), "no such file or folder"),
        (("HF", "--evals=zero", "--data=digits"), "no family has these types of evaluators. clip: zero_shot, retrieval,"),
        (("hf:org/name", "--evals=likelihood", "--data=digits"), "name the family of the weights, --family=prior|dalle"),
    ],
)
def test_mistakes_of_train_jax_evaluate_are_one_line(tiny, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(tiny[1]), "HF": str(GOLDEN / "hf-clip")}
    code, out, err = evaluate_run(*(names.get(word, word) for word in words), capsys=capsys)
    assert code == 2 and message in one_line(err) and out == ""

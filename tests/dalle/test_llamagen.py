"""Text-conditional LlamaGen, against what its own code computes (`tests/golden/make_llamagen.py`)."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import dalle_jax
import train_jax
import vqgan_jax
from dalle_jax import LoadError
from dalle_jax.cli import main
from dalle_jax.features import FeatureCaptions
from tests.shared_run import on_one_device
from train_jax.data import sources
from train_jax.data.errors import BrokenSample
from train_jax.errors import ConfigError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDER, VQGAN = GOLDEN / "dalle" / "llamagen-t2i", GOLDEN / "vqgan" / "dalle-mini"


@pytest.fixture(scope="module")
def outputs() -> dict:
    with np.load(FOLDER / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def texts(outputs) -> list[np.ndarray]:
    return [features[mask > 0] for features, mask in zip(outputs["features"], outputs["mask"], strict=True)]


@pytest.fixture(scope="module")
def model():
    return dalle_jax.load(FOLDER, vqgan=VQGAN)


def test_logits_and_the_most_likely_codes_are_those_of_the_peer(model, outputs, texts):
    tokens = model.condition.encode(texts)
    np.testing.assert_array_equal(tokens[..., :-1], outputs["features"])
    np.testing.assert_array_equal(tokens[..., -1], outputs["mask"])
    for rows, key in ((tokens, "logits"), (model.condition.drop(tokens), "logits_without_text")):
        np.testing.assert_allclose(model.logits(rows, outputs["codes"])[1], outputs[key], atol=1e-5)
    for key, guidance in (("greedy", 1.0), ("guided", float(outputs["guidance"]))):
        drawing = model.draw(texts, 3, temperature=0, guidance=guidance, batch_size=4, progress=False)
        np.testing.assert_array_equal(drawing.codes.reshape(2, 3, -1), np.repeat(outputs[key][:, None], 3, axis=1))
    assert (outputs["greedy"] != outputs["guided"]).any()


def test_known_codes_keep_the_padding_of_their_text(model, outputs, texts):
    """Half an image is kept, whose codes are prefilled behind each text: the rest is what is most likely after both."""
    keep, image = np.arange(16).reshape(4, 4) < 8, np.full((8, 8, 3), 90, np.uint8)
    drawing = model.draw(texts, temperature=0, guidance=2.0, init_image=image, keep=keep, progress=False)
    codes = drawing.codes.reshape(2, 16)
    np.testing.assert_array_equal(codes[:, :8], np.repeat(model.vqgan.encode(image[None]).reshape(1, 16)[:, :8], 2, axis=0))
    tokens = model.condition.encode(texts)
    pair = [model.logits(rows, codes)[1] for rows in (tokens, model.condition.drop(tokens))]
    np.testing.assert_array_equal(codes[:, 8:], np.argmax(2 * pair[0] - pair[1], axis=-1)[:, 8:])
    scores = model.score(texts, drawing.images[:, 0])
    assert scores.shape == (2, 2) and np.isfinite(scores).all()


def test_prompts_are_files_of_features(model, outputs, texts, tmp_path, capsys):
    np.save(tmp_path / "cat.npy", texts[0][None].astype(np.float16))  # with the first axis of LlamaGen's files
    np.savez(tmp_path / "dog.npz", texts[1])
    files = [str(tmp_path / "cat.npy"), str(tmp_path / "dog.npz")]
    drawing = model.draw(files, 3, temperature=0, guidance=float(outputs["guidance"]), batch_size=4, progress=False)
    np.testing.assert_array_equal(drawing.codes[:, 0].reshape(2, -1), outputs["guided"])
    assert model.condition.seed(files[1]) == model.condition.seed(texts[1]) != model.condition.seed(texts[0])
    arguments = ["--model", str(FOLDER), "--vqgan", str(VQGAN), "--out", str(tmp_path / "grid.png")]
    assert main(["generate", "a cat", *arguments]) == 2
    assert "name features, a file .npy of last_hidden_state" in capsys.readouterr().err
    row, is_cut = model.condition._pack(np.ones((121, 12), np.float32))
    assert is_cut and row[:, -1].all()
    assert (model.condition.encode([""])[0] == model.condition.null).all()
    with pytest.raises(ValueError, match="rerank = .*: CLIP needs texts"):
        model.draw(texts, rerank=str(GOLDEN / "clip" / "hf-clip"))


@pytest.mark.parametrize(
    "value, message",
    [
        (np.ones((3, 11), np.float32), r"finite floats \[tokens, 12\], not float32 \[3, 11\]"),
        (np.ones((0, 12), np.float32), r"not float32 \[0, 12\]"),
        (np.ones((3, 12), np.int32), "not int32"),
        (np.full((3, 12), np.nan), "must be finite"),
        (3, "must be a text, an array of features or its file, not int"),
        ("none.npy", "none.npy could not be read"),
    ],
)
def test_what_has_no_features_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        FeatureCaptions(120, 12).encode([value])


def test_records_without_features_are_broken(tmp_path):
    captions = FeatureCaptions(120, 12, folder=str(tmp_path))
    for name in ("missing", "../up", "damaged"):
        (tmp_path / "damaged.npy").write_bytes(b"x")
        with pytest.raises(BrokenSample, match=re.escape(name)):
            captions.example({"id": name}, None)


def test_a_run_from_public_weights_is_a_model_like_any_other(tmp_path, outputs, texts):
    """Two updates that change nothing, with features of each record; then the run alone."""
    c = ConfigDict({"task": "dalle_jax.task", "steps": 2, "pretrained": str(FOLDER), "vqgan": {"path": str(VQGAN)}})
    c.data = {"source": "digits", "batch_size": 8, "data_dir": str(tmp_path / "data")}
    c.optim, c.dropout, c.features = {"lr": 1e-12}, 0.0, str(tmp_path / "features")
    c.evals = {"look": {"type": "samples", "rows": 2, "n": 1, "guidance": 2.0}}
    with pytest.raises(ConfigError, match="config.features = ''; it must be a folder: the model reads features"):
        train_jax.run(ConfigDict(c.to_dict() | {"features": ""}), tmp_path / "none")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        source = sources.open_source("digits", split, data_dir=c.data.data_dir)
        for index in range(len(source)):
            file = tmp_path / "features" / f"{source.metadata(index)['id']}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rng.standard_normal((1, index % 5 + 1, 12)).astype(np.float16))
    with on_one_device():
        train_jax.run(c, tmp_path / "run")
    run = dalle_jax.load(tmp_path / "run")
    logits = run.logits(run.condition.encode(texts), outputs["codes"])[1]
    np.testing.assert_allclose(logits, outputs["logits"], atol=1e-4)
    assert "look/distinct_codes" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cls_token_num": 119}, "weights and configuration belong to different models"),
        ({"caption_dim": 13}, "weights and configuration belong to different models"),
        ({"caption_dim": 0}, "caption_dim = 0; it must be a positive integer"),
        ({"model_type": "c2i"}, "model_type = 'c2i'; only 't2i' is supported here; open it with vqgan_jax.load_prior"),
        ({"n_head": 3}, "width = 32; it must be a multiple of config.model.heads = 3"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    folder = tmp_path / "llamagen"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=message):
        dalle_jax.load(folder, vqgan=VQGAN)


def test_it_is_no_prior_of_classes():
    with pytest.raises(LoadError, match="only 'c2i' is supported here; open it with dalle_jax.load"):
        vqgan_jax.load_prior(FOLDER, vqgan=VQGAN)

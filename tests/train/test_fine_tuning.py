"""Low-rank adapters: their products against sums written out, and what they train and save; the line between weights."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

import clip_jax
import train_jax
from tests.shared_run import make_shapes
from train_jax import adapters, finetune, lora, record, sharding, trained_weights
from train_jax.data.errors import DataError
from train_jax.errors import ConfigError, UserError
from train_jax.evaluation import blend, command
from train_jax.evaluation.results import read_evaluations
from train_jax.weights import layout


def boxed(shape, names):
    return nn.LogicallyPartitioned(jnp.ones(shape), names)


PARAMS = {
    "clip": {
        "dense": {"kernel": boxed((4, 6), ("embed", "mlp")), "bias": boxed((6,), ("mlp",))},
        "joint": {"kernel": boxed((2, 4, 3, 2, 5), ("layers", "embed", "qkv", "heads", "head_dim"))},
        "out": {"kernel": boxed((2, 5, 4), ("heads", "head_dim", "embed"))},
        "conv": {"kernel": boxed((3, 3, 4, 6), ("patch", "patch", "channels_in", "channels_out"))},
    },
    "other": {"dense": {"kernel": boxed((4, 6), ("embed", "mlp"))}},
}
ADAPTERS = (("clip/joint", 2, 6.0), ("clip", 1, 3.0))


def add():
    return lora.add_adapters(PARAMS, ADAPTERS, (), jax.random.key(0))


def test_adapters_have_the_axes_of_their_kernels_and_the_first_matching_rank():
    axes = sharding.logical_axes(add())
    shapes = {name: x.shape for name, x in _by_path(sharding.unbox(add())).items() if "/lora/" in name}
    assert shapes == {
        "clip/lora/dense/kernel/a": (4, 1, 1), "clip/lora/dense/kernel/b": (1, 6, 1), "clip/lora/dense/kernel/scale": (),
        "clip/lora/joint/kernel/a": (2, 4, 3, 1, 1, 2), "clip/lora/joint/kernel/b": (2, 1, 3, 2, 5, 2),
        "clip/lora/joint/kernel/scale": (), "clip/lora/out/kernel/a": (2, 5, 1, 1), "clip/lora/out/kernel/b": (1, 1, 4, 1),
        "clip/lora/out/kernel/scale": (), "clip/lora/conv/kernel/a": (3, 3, 4, 1, 1),
        "clip/lora/conv/kernel/b": (1, 1, 1, 6, 1), "clip/lora/conv/kernel/scale": (),
    }  # fmt: skip
    assert axes["clip/lora/joint/kernel/a"] == ("layers", "embed", "qkv", None, None, None)
    assert axes["clip/lora/joint/kernel/b"] == ("layers", None, "qkv", "heads", "head_dim", None)


def _by_path(tree):
    return {sharding.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_merging_adds_the_products(library):
    """Against the sum over the rank of products that are broadcast."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: library.asarray(draw.standard_normal(x.shape, np.float32)), jax.device_get(sharding.unbox(add()))
    )
    merged = lora.merge(params)
    assert merged["other"] is params["other"] and set(merged["clip"]) == set(PARAMS["clip"])
    np.testing.assert_array_equal(merged["clip"]["dense"]["bias"], params["clip"]["dense"]["bias"])
    for module, adapter in params["clip"]["lora"].items():
        kernel, adapter = params["clip"][module]["kernel"], jax.device_get(adapter["kernel"])
        expected = kernel + adapter["scale"] * (adapter["a"] * adapter["b"]).sum(-1)
        np.testing.assert_allclose(merged["clip"][module]["kernel"], expected, rtol=1e-5, atol=1e-5)


def test_before_training_nothing_has_changed():
    params = sharding.unbox(add())
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params), sharding.unbox(PARAMS))
    a = params["clip"]["lora"]["dense"]["kernel"]["a"]
    assert np.std(a) > 0 and float(params["clip"]["lora"]["joint"]["kernel"]["scale"]) == 3


def test_a_pattern_that_is_no_kernels_first_match_is_an_error():
    for patterns in ((("bias", 1, 1.0),), (("clip", 1, 1.0), ("clip/dense", 2, 1.0))):
        with pytest.raises(ConfigError, match="is the first match of no kernel; they are named clip/conv/kernel"):
            lora.add_adapters(PARAMS, patterns, (), jax.random.key(0))


def test_what_is_frozen_has_no_adapters():
    frozen = lora.add_adapters(PARAMS, ADAPTERS, ("clip/conv", "clip/out"), jax.random.key(0))
    assert frozen["clip"]["lora"].keys() == {"dense", "joint"}
    with pytest.raises(ConfigError, match=r"kernels that config.optim.freeze = \('clip',\) freezes.*freeze = \(\)"):
        lora.add_adapters(PARAMS, (("clip", 1, 1.0),), ("clip",), jax.random.key(0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny CLIP, and a run that adapts its attention."""
    folder = tmp_path_factory.mktemp("lora")
    tower = {"width": 8, "depth": 2, "heads": 2}
    c = ConfigDict({"task": "clip_jax.task", "steps": 1, "data": {"source": "digits", "batch_size": 16}})
    c.data.data_dir = str(folder / "data")
    c.model = {"embed_dim": 8, "image": {"size": 8, "patch": 4, **tower}, "text": {"context_length": 12, **tower}}
    c.tokenizer = {"vocab_size": 560}
    train_jax.run(c, folder / "base")
    c.model, c.tokenizer = {}, {}
    c.pretrained, c.steps = str(folder / "base"), 3
    c.optim = {"lr": 0.05, "lora": (("transformer/.*/attention", 2, 4.0),), "weight_decay": 0.5}
    c.evals = {"test": {"type": "zero_shot", "split": "test[:40]"}}
    history = train_jax.run(c, folder / "tuned")
    return folder, c, history


def test_only_adapters_are_trained_and_a_loaded_model_has_them_merged(runs):
    folder, _, history = runs
    base, _, _ = trained_weights.load_weights(folder / "base" / "checkpoints")
    tuned, _, _ = trained_weights.load_weights(folder / "tuned" / "checkpoints")
    before, after = _by_path(base), _by_path(tuned)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "/transformer/" in name and "/attention/" in name and "kernel" in name}
    for name in changed:
        delta = (after[name] - before[name]).reshape(2, 8, -1)  # of two blocks
        assert max(np.linalg.matrix_rank(x, tol=1e-5) for x in delta) <= 2 * (3 if delta.shape[-1] == 24 else 1)
    clip = clip_jax.load(folder / "tuned")
    texts = [f"a photo of the digit {digit}" for digit in range(10)]
    assert np.isfinite(clip.encode_text(texts)).all()
    assert not np.allclose(clip.encode_text(texts), clip_jax.load(folder / "base").encode_text(texts), atol=1e-3)


def test_evaluators_and_evaluations_see_merged_kernels(runs, capsys):
    folder, _, history = runs
    trained = next(row for row in reversed(history) if "test/top1" in row)["test/top1"]
    assert command.main([str(folder / "tuned")]) == 0
    assert f"top1 {trained:.5g}" in capsys.readouterr().out


def test_base_and_a_file_of_adapters_are_the_run(runs, capsys):
    """Bit for bit. The file holds the adapters alone: 2 blocks, 4 products of 8 features, of rank 2, and their scales."""
    folder, _, _ = runs
    file, merged = folder / "tuned" / adapters.FILE, folder / "merged"
    sizes = {name: x.size for name, x in safetensors.numpy.load_file(file).items()}
    assert all("/lora/" in name for name in sizes) and file.stat().st_size < 20_000
    of_tower = 2 * 2 * 4 * (8 + 8) + 2  # values of rank 2 in 2 blocks: query, key, value, output; two scales
    assert sum(sizes.values()) == 2 * of_tower
    assert adapters.main([str(folder / "base"), str(file), f"--workdir={merged}"]) == 0
    assert capsys.readouterr().out.strip() == str(merged)
    jax.tree.map(np.testing.assert_array_equal, weights(merged), weights(folder / "tuned"))
    assert clip_jax.load(merged).fingerprint == clip_jax.load(folder / "tuned").fingerprint
    assert adapters.main([str(folder / "base"), str(file), f"--workdir={merged}"]) == 2
    assert "is a run directory already" in capsys.readouterr().err


def test_adapters_of_other_weights_are_refused(runs, tmp_path, capsys):
    folder, _, _ = runs
    file = folder / "tuned" / adapters.FILE
    arrays = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    wide = {name: np.repeat(x, 2, axis=1) if name.endswith("/out/kernel/a") else x for name, x in arrays.items()}
    safetensors.numpy.save_file(wide, tmp_path / "wide.safetensors", metadata=metadata)
    safetensors.numpy.save_file(arrays, tmp_path / "plain.safetensors")
    for base, name, words in (
        ("tuned", file, "has other weights, or other files such as a tokenizer"),
        ("base", tmp_path / "wide.safetensors", r"/out/kernel is (2, 2, 4, 8), and its adapter has (2, 4, 4, 1)"),
        ("base", tmp_path / "plain.safetensors", "holds no adapters: name adapters.safetensors"),
    ):
        assert adapters.main([str(folder / base), str(name), f"--workdir={tmp_path / 'merged'}"]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()


def test_evaluators_share_one_merge(runs, tmp_path, monkeypatch):
    folder, c, _ = runs
    calls = []
    monkeypatch.setattr(record, "_merge", lambda params: calls.append(1) or lora.merge(params))
    c = c.copy_and_resolve_references()
    c.steps, c.evals = 1, {name: {"type": "zero_shot", "split": "test[:8]"} for name in ("first", "second")}
    train_jax.run(c, tmp_path / "run")
    assert len(calls) == 1


def test_random_weights_are_not_adapted(runs, tmp_path):
    _, c, _ = runs
    c = c.copy_and_resolve_references()
    c.pretrained, c.tokenizer = "", {"vocab_size": 560}
    with pytest.raises(ConfigError, match="set config.pretrained"):
        train_jax.run(c, tmp_path)


def weights(folder):
    return trained_weights.load_weights(folder / "checkpoints")[:2]


def test_a_saved_point_lies_between_the_ends(runs, capsys):
    """Half of the way from the weights that the run started from; it opens as a run, and fine-tuning starts from it."""
    folder, _, _ = runs
    outputs = [f"--save={folder / 'half'}", "--at=0.5", f"--png={folder / 'line.png'}"]
    assert blend.main([str(folder / "tuned"), "--alpha=0:1:0.5", *outputs]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "alpha" and "test/top1" in head.split()
    assert [row.split()[0] for row in rows] == ["0.00", "0.50", "1.00"] and last.startswith("alpha 0.5: ")
    assert (folder / "line.png").stat().st_size > 5000
    (start, _), (end, _), (half, _) = (weights(folder / name) for name in ("base", "tuned", "half"))
    jax.tree.map(lambda a, b, x: np.testing.assert_allclose(x, (a + b) / 2, atol=1e-6), start, end, half)
    texts = [f"a photo of the digit {digit}" for digit in range(10)]
    assert np.isfinite(clip_jax.load(folder / "half").encode_text(texts)).all()


def test_the_ends_of_the_line_are_the_models(runs):
    """Results of alpha 0 and 1 are those of `train-jax evaluate`; they are computed once."""
    folder, _, _ = runs
    assert blend.main([str(folder / "base"), str(folder / "tuned"), "--alpha=0,1", f"--out={folder / 'line.jsonl'}"]) == 0
    rows = {row["model"].rpartition(" ")[2]: row for row in read_evaluations(folder / "line.jsonl")}
    tuned = next(row for row in read_evaluations(folder / "tuned") if row["model"] == str(folder / "tuned"))
    assert rows["1"]["metrics"] == tuned["metrics"] and rows["1"]["model_id"] == tuned["model_id"] != rows["0"]["model_id"]


def test_several_runs_are_averaged(runs):
    folder, _, _ = runs
    names = [str(folder / name) for name in ("base", "half", "tuned")]
    assert blend.main([*names, "--alpha=1", f"--save={folder / 'soup'}"]) == 0
    (half, _), (end, _), (soup, _) = (weights(folder / name) for name in ("half", "tuned", "soup"))
    jax.tree.map(lambda a, b, x: np.testing.assert_allclose(x, (a + b) / 2, atol=1e-6), half, end, soup)


POINTS = {0.0: {"old": 0.9, "new": 0.1}, 0.5: {"old": 0.88, "new": 0.7}, 1.0: {"old": 0.5, "new": 0.8}}


def test_the_best_point_that_keeps_the_old_is_chosen():
    assert blend.choose(POINTS, "new", {}) == 1 and blend.choose(POINTS, "new", {"old": 0.021}) == 0.5
    assert blend.choose(POINTS, "new", {"old": 0.01}) == 0
    with pytest.raises(UserError, match="no metric 'newer': the evaluators give old, new"):
        blend.choose(POINTS, "newer", {})
    unknown = {alpha: metrics | {"new": np.nan} for alpha, metrics in POINTS.items()}
    assert blend.choose({**unknown, 0.5: POINTS[0.5]}, "new", {}) == 0.5
    for points, keep in ((unknown, {}), (POINTS, {"old": -0.1})):
        with pytest.raises(UserError, match="at no point new is a number"):
            blend.choose(points, "new", keep)


def test_of_bits_the_fewest_are_best():
    bits = {alpha: {name: 1 - value for name, value in metrics.items()} for alpha, metrics in POINTS.items()}
    assert blend.choose(bits, "new", {}, "minimize") == 1
    assert [blend.choose(bits, "new", {"old": loss}, "minimize") for loss in (0.021, 0.01)] == [0.5, 0]


@pytest.mark.parametrize("text, alphas", [("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]), ("0.5", [0.5]), ("0,1", [0, 1])])
def test_points_are_listed_or_a_range(text, alphas):
    assert blend.parse_alphas(text) == alphas


@pytest.mark.parametrize("text", ["0:1:0.3", "1:0:0.1", "0:1:0", "a", "0:1", "0,nan", "inf"])
def test_points_that_are_no_range_are_refused(text):
    with pytest.raises(UserError, match="FROM:TO:STEP"):
        blend.parse_alphas(text)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["base"], "there is nothing to evaluate"),
        (["base", "--evals=zero_shot"], "did not start from weights"),
        (["tuned", "--save=new"], "choose one of 11 points"),
        (["tuned", "--at=0.5"], "add --save=DIR"),
        (["tuned", "--alpha=1", "--save=new", "--keep=test/top1:0.1"], "let --alpha contain 0"),
        (["tuned", "--alpha=1", "--save=base"], "is a run directory already"),
        (["digits", "tuned"], "digits: no such file or folder"),
    ],
)
def test_what_cannot_be_blended_is_said_before_work(runs, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(runs[0])
    assert blend.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def finetuned(runs):
    """A tiny CLIP of digits, fine-tuned on pictures of shapes."""
    folder, _, _ = runs
    make_shapes(folder, {"train": 64, "test": 24, "novel": 8})
    words = [str(folder / "base"), "--data=shapes/32", "--keep=digits", "--alpha=0,1", "--tolerance=1"]
    words += [f"--workdir={folder / 'finetuned'}", "--config.steps=3", "--config.optim.warmup_steps=1"]
    words += ["--config.optim.lr=0.01", f"--config.data.data_dir={folder / 'data'}", "--config.data.batch_size=16"]
    words += ["--config.compute.micro_batch=0", "--config.compute.scan=False"]  # of the base, blocks are stacked
    return folder, words


def test_fine_tuning_tells_what_is_gained_and_forgotten(finetuned, capsys):
    folder, words = finetuned
    assert finetune.main(words) == 0
    *_, head, first, last, new, old, chosen = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "alpha" and first.split()[0] == "0.00" and last.split()[0] == "1.00"
    assert new.startswith("new/top1: ") and old.startswith("old/top1: ") and "before" in old and "line.png" in chosen
    config = json.loads((folder / "finetuned" / "config.json").read_text())
    assert config["evals"]["new"]["source"] == "shapes/32" and config["evals"]["old"]["source"] == "digits"
    assert config["optim"]["schedule"] == "wsd" and config["data"]["split"] == "train"
    names = ("base", "finetuned", "finetuned/best")
    start, end, best = (layout.flatten(weights(folder / name)[0]["clip"]) for name in names)
    alpha = float(chosen.split()[1].rstrip(":"))
    jax.tree.map(np.testing.assert_array_equal, best, end if alpha else start)
    for name in filter(lambda name: name.startswith("text/"), start):
        np.testing.assert_array_equal(start[name], end[name])


def test_data_without_labels_and_a_test_split_are_compared_by_retrieval(tmp_path, runs):
    folder, _, _ = runs
    for index in range(10):
        Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"grey {index}")
    config, metrics = finetune.make_config(str(folder / "base"), "clip", f"folder:{tmp_path}", ["digits"], [])
    assert metrics == ["new/text_to_image/r1", "old/top1"]
    assert (config.data.split, config.evals.new.split, config.evals.old.split) == ("train[10%:]", "train[:10%]", "test")
    config, metrics = finetune.make_config("vq", "vqgan", f"folder:{tmp_path}", ["digits", "digits"], ["--config.steps=5"])
    assert metrics == ["new/psnr", "old1/psnr", "old2/psnr"] and config.steps == 5 and config.pretrained == "vq"


def test_splits_are_named_with_the_data_or_as_options(runs):
    folder, c, _ = runs
    words = [f"--config.data.data_dir={c.data.data_dir}", "--config.evals.new.split=test[:9]", "--config.data.split=test"]
    words.append("--config.evals.old1.batch_size=3")
    keep = ["digits@train[:20]", "digits"]
    config, metrics = finetune.make_config(str(folder / "base"), "clip", "digits", keep, words)
    assert [options.split for options in config.evals.values()] == ["test[:9]", "train[:20]", "test"]
    assert config.data.split == "test" and config.evals.old1.batch_size == 3
    assert metrics == ["new/top1", "old1/top1", "old2/top1"]
    with pytest.raises(DataError, match="has no split 'tests'"):
        finetune.make_config("base", "clip", "digits", ["digits@tests"], words)
    with pytest.raises(DataError, match="me@home/photos"):  # no split
        finetune.make_config("base", "clip", "digits", ["folder:me@home/photos"], words)
    for options in ("none", "samples"):
        with pytest.raises(ConfigError, match=f"config.evals.old compares .* not {options}"):
            word = f"--config.evals.old{'' if options == 'none' else '.type'}={options}"
            finetune.make_config("base", "clip", "digits", ["digits"], [*words[:1], word])


def test_replay_takes_its_share_of_the_training_from_the_data_to_keep(tmp_path, runs):
    """Each source once, also if it is kept on several splits; what is held out of one is held out of all."""
    folder, c, _ = runs
    words, keep = [f"--config.data.data_dir={c.data.data_dir}"], ["digits", "digits@train[:9]"]
    config, metrics = finetune.make_config("base", "clip", "1 digits | 3 digits", keep, words, 0.2)
    assert config.data.source == "20 digits | 60 digits | 20 digits" and config.data.split == "train"
    assert config.evals.new.source == "1 digits | 3 digits" and len(metrics) == 3
    for index in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("black")
    config, _ = finetune.make_config("base", "clip", "digits", ["digits", f"folder:{tmp_path}"], words, 0.5)
    assert config.data.source == f"50 digits | 25 digits | 25 folder:{tmp_path}" and config.data.split == "train[10%:]"
    for keep, share in ([], 0.5), (["digits"], 1.0):
        with pytest.raises(UserError, match=f"--replay={share:g}: name a share from 0 to below 1, and data"):
            finetune.make_config("base", "clip", "digits", keep, words, share)


def test_data_that_are_not_there_are_an_error(finetuned, capsys):
    assert finetune.main(["base", "--data=folder:nowhere", "--workdir=run"]) == 2
    assert "nowhere" in capsys.readouterr().err
    _, words = finetuned
    for word, message in (("--alpha=0.5", "let it contain 0"), ("--tolerance=-1", "it is the largest loss, 0 or more")):
        assert finetune.main([*words, word]) == 2
        assert message in capsys.readouterr().err

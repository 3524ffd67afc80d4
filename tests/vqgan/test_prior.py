"""The second stage: trained on cached codes, loaded, sampled from; against loops that know no cache."""

import io
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import train_jax
import vqgan_jax
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.data import sources
from train_jax.data.errors import DataError
from train_jax.errors import ConfigError, LoadError
from train_jax.evaluate import Context
from vqgan_jax import cli
from vqgan_jax import codes as codes_lib
from vqgan_jax.prior import model as model_lib
from vqgan_jax.prior import sampling
from vqgan_jax.prior import task as task_lib
from vqgan_jax.prior.prior import Prior

RNG = np.random.default_rng(0)


def prior_config(tiny) -> ConfigDict:
    c = ConfigDict({"task": "vqgan_jax.prior.task", "steps": 3, "log_every": 1})
    c.data = tiny[0].data.to_dict()
    c.vqgan = {"path": str(tiny[1])}
    c.codes = {"flip": True}
    c.model = {"classes": 80, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1}
    c.optim = {"lr": 1e-2}
    c.evals = {
        "test": {"type": "likelihood", "batch_size": 16},
        "look": {"type": "samples", "n": 6, "columns": 3, "top_p": 0.9},
    }
    return c


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    config, folder = prior_config(tiny), tmp_path_factory.mktemp("prior") / "run"
    train_jax.run(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def prior(run):
    return vqgan_jax.load_prior(run[1])


def test_a_run_reports_bits_and_shows_samples(run):
    history = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "bits_per_code", "accuracy"} <= history[0].keys()
    assert history[0]["bits_per_code"] == pytest.approx(history[0]["loss"] / np.log(2), rel=1e-5)
    assert history[0]["bits_per_code"] == pytest.approx(4, abs=0.2), "16 codes, before anything is learnt"
    assert history[-1]["test/images"] == 24 and history[-1]["test/bits_per_code"] < 4.2
    assert list((run[1] / "samples").glob("*samples*"))


def test_samples_of_an_evaluation_are_those_of_the_loaded_model(run, prior, compilations):
    """In batches of eight of eleven pictures, the last one padded; compiled once for all batches and evaluations."""
    config = config_lib.resolve(run[0])
    task = task_lib.make(config, run[1])
    context = Context(sharding.make_mesh(config.mesh), config, task)
    options = config.evals.look
    options.update({"n": 11, "columns": 11, "batch_size": 8})
    evaluate = task.evaluators["samples"](options, context)
    with jax.set_mesh(context.mesh):
        params = {"prior": jax.tree.map(np.asarray, prior.variables)}
        metrics, images = evaluate(params, {})
        assert [program._cache_size() for program in context._compiled.values()] == [1]
        compilations.clear()
        np.testing.assert_array_equal(evaluate(params, {})[1]["samples"], images["samples"])
        assert not compilations
    codes = prior.sample_codes(11, list(range(11)), top_p=0.9)
    assert metrics["distinct_codes"] == len(np.unique(codes))
    pictures = np.round(255 * prior.vqgan.decode(codes))
    sheet = images["samples"].reshape(16, -1, 3)
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(sheet[:, 18 * number : 18 * number + 16], picture)


def test_codes_are_computed_once_and_are_those_of_the_pictures(run, trained, monkeypatch):
    source = sources.open_source("shapes/32", "test", data_dir=run[0].data.data_dir)
    monkeypatch.setattr(type(trained), "encode", None)  # there they are already
    coded = codes_lib.with_codes(trained, source, run[1] / "codes", flip=True)
    monkeypatch.undo()
    assert len(coded) == 24 and "image" not in coded[0] and coded[0]["captions"] == source[0]["captions"]
    pictures = trained.pixels([Image.open(io.BytesIO(record["image"])) for record in source])
    np.testing.assert_array_equal([r["codes"][0] for r in coded], trained.encode(pictures))
    np.testing.assert_array_equal(
        [r["codes"][1] for r in coded], trained.encode(np.ascontiguousarray(pictures[:, :, ::-1]))
    )


def test_codes_of_pictures_that_changed_are_refused(run, trained, tmp_path):
    source = sources.open_source("shapes/32", "test", data_dir=run[0].data.data_dir)
    shutil.copytree(run[1] / "codes", tmp_path / "codes")
    changed = [dict(record) for record in source]
    changed[7]["image"] = changed[8]["image"]
    with pytest.raises(DataError, match=r"is stale: record 7 of shapes/32:test .* Remove"):
        codes_lib.with_codes(trained, sources.Source(source.name, changed), tmp_path / "codes", flip=True)
    # Other transforms, another tokenizer: other files.
    codes_lib.with_codes(trained, source, tmp_path / "codes", flip=False)
    assert len(list((tmp_path / "codes").glob("codes-*.json"))) == 3


def test_a_picture_that_cannot_be_read_is_passed_over(trained, tmp_path):
    records = [{"image": trained_png(), "id": "a"}, {"image": b"none", "id": "b"}]
    coded = codes_lib.with_codes(trained, sources.Source("two", records), tmp_path)
    assert coded[0]["codes"].shape == (1, 8, 8)
    with pytest.raises(codes_lib.BrokenSample, match="b: the picture could not be read"):
        coded[1]
    with pytest.raises(DataError, match="none of its 1 pictures"):
        codes_lib.with_codes(trained, sources.Source("one", records[1:]), tmp_path)


def trained_png() -> bytes:
    from train_jax.data.shapes.render import png

    return png(RNG.integers(0, 256, (16, 16, 3), np.uint8))


def test_a_rule_is_learnt_in_bfloat16_as_in_float32(tiny, trained, learn):
    """64 grids of codes, each of which follows from its label: in the end each is drawn for its label."""
    label, row, column = np.ogrid[:64, :8, :8]
    codes = ((label + 5 * row + column) % 16).astype(np.int32)
    batch = {"codes": codes, "label": np.arange(64, dtype=np.int32)}
    curves = {}
    for dtype, updates in (("float32", 150), ("bfloat16", 12)):
        c = prior_config(tiny)
        c.steps, c.evals, c.label_dropout = 150, {}, 0.0
        c.model = {"classes": 64, "width": 32, "depth": 2, "heads": 2, "dropout": 0.0, "dtype": dtype}
        config = config_lib.resolve(c)
        state, history = learn(task_lib.make(config, None), config, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["bits_per_code"] < 0.1
            made = Prior.assemble(config.model, state.params["prior"], trained, 16, "rule")
            np.testing.assert_array_equal(made.sample_codes(64, list(range(64)), temperature=0), codes)
    # Products are rounded to 8 bits: a loss is off by less than a hundredth, and Adam's steps keep it so.
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"][:12], rtol=0.02)
    assert curves["bfloat16"][-1] < 0.95 * curves["bfloat16"][0]


def uncached(prior, labels, guidance=1.0):
    """The most likely codes, the whole sequence computed anew for each."""
    logits_of = jax.jit(lambda codes, labels: prior.module.apply({"params": prior.variables}, codes, labels))
    codes = np.zeros((len(labels), prior.module.length), np.int32)
    for i in range(prior.module.length):
        c, u = (np.asarray(logits_of(codes, np.asarray(x, np.int32)))[:, i] for x in (labels, np.full(len(labels), -1)))
        codes[:, i] = np.argmax(u + guidance * (c - u), axis=1)
    return codes.reshape(len(labels), *prior.window)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_cached_sampling_is_what_whole_sequences_say(prior, guidance):
    # At temperature 0 one wrong logit would change all that follows.
    found = prior.sample_codes(3, [0, 5, 79], temperature=0, guidance=guidance)
    np.testing.assert_array_equal(found, uncached(prior, [0, 5, 79], guidance))
    assert guidance == 1 or (found != uncached(prior, [0, 5, 79])).any()


def test_bfloat16_with_a_cache_is_the_whole_sequence_and_its_logits_are_float32_sums():
    options = model_lib.defaults()
    options.update({"classes": 5, "width": 16, "depth": 3, "heads": 2, "dtype": "bfloat16"})
    module = model_lib.build(options, 20, 8)
    codes, labels = jnp.asarray(RNG.integers(0, 20, (2, 8)), jnp.int32), jnp.asarray([3, -1])
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), codes, labels))["params"]
    params = jax.tree.map(lambda x: x + 0.3 * RNG.standard_normal(x.shape, np.float32), params)
    listening = {"capture_intermediates": lambda part, _: part.name == "norm", "mutable": ["intermediates"]}

    def check(logits, state):
        (x,) = state["intermediates"]["norm"]["__call__"]
        kernel = np.asarray(jnp.asarray(params["head"]["kernel"], jnp.bfloat16), np.float64)
        assert x.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, np.asarray(x, np.float64) @ kernel, rtol=1e-6, atol=1e-5)

    whole, state = module.apply({"params": params}, codes, labels, **listening)
    check(whole, state)
    plain, unrolled = model_lib.for_sampling(module, params)
    (logits, cache), state = plain.apply({"params": unrolled}, labels, codes[:, :2], method="begin", **listening)
    step = jax.jit(lambda *inputs: plain.apply({"params": unrolled}, *inputs, method="step", **listening))
    for place in range(2, 8):
        check(logits, state)
        np.testing.assert_allclose(logits, whole[:, place], atol=2e-2 * np.abs(whole).max())
        (logits, cache), state = step(codes[:, place], jnp.int32(place), cache)


def test_picture_i_is_the_same_in_any_batch(prior):
    whole = prior.sample_codes(5, 3, seed=7)
    np.testing.assert_array_equal(prior.sample_codes(5, 3, seed=7, batch_size=2), whole)
    np.testing.assert_array_equal(prior.sample_codes(2, 3, seed=7), whole[:2])
    assert (prior.sample_codes(5, 3, seed=8) != whole).any()
    np.testing.assert_array_equal(prior.sample_codes(5, 3, seed=7, top_p=1.0), whole)
    np.testing.assert_array_equal(prior.sample_codes(5, 3, seed=7, top_k=16), whole)


def test_settings_change_without_compiling_anew(prior):
    prior.sample_codes(1, 0, top_k=4, temperature=0.5)
    before = prior._program._cache_size()
    prior.sample_codes(1, 0, top_k=4, temperature=0.7, top_p=0.5)
    assert prior._program._cache_size() == before


def test_pictures_are_decoded_codes(prior):
    codes = prior.sample_codes(2, 1)
    pictures = prior.sample(2, 1)
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(pictures, np.round(255 * prior.vqgan.decode(codes)))


def test_likelihood_is_the_sum_over_codes(prior, trained):
    pictures = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8)
    codes = jnp.asarray(trained.encode(pictures).reshape(3, -1))
    logits = prior.module.apply({"params": prior.variables}, codes, jnp.asarray([1, 2, 3]))
    wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(codes)[..., None], 2).sum((1, 2))
    np.testing.assert_allclose(prior.log_likelihood(pictures, [1, 2, 3]), wanted, rtol=1e-5)


@pytest.mark.parametrize("size, stride", [((8, 8), 4), ((8, 13), 4), ((21, 8), 1), ((11, 14), 3), ((16, 16), 8)])
def test_windows_cover_every_code_once_with_all_they_can_see(size, stride):
    known = np.zeros(size, int)
    for top, left, before, keep in sampling.windows(size, (8, 8), stride):
        part = known[top : top + 8, left : left + 8]
        assert before % 8 == 0 and part.reshape(-1)[:before].all()
        np.testing.assert_array_equal(keep, part.reshape(-1)[before:] > 0)
        fresh = part == 0
        # What is drawn lies below or right of what is known: rows of a window end alike.
        assert (np.diff(fresh.astype(int), axis=1) >= 0).all() and (np.diff(fresh.astype(int), axis=0) >= 0).all()
        part += fresh
    assert (known == 1).all()


def test_a_large_image_is_drawn_window_by_window(prior):
    found = prior.sample_codes(2, 4, temperature=0, size=(20, 24), stride=2)
    assert found.shape == (2, 10, 12)
    np.testing.assert_array_equal(found[:, :8, :8], prior.sample_codes(2, 4, temperature=0))
    # Each later code again, from its window's codes and no cache.
    logits_of = jax.jit(lambda codes: prior.module.apply({"params": prior.variables}, codes, jnp.full(2, 4)))
    known = np.zeros((10, 12), bool)
    for top, left, _, _ in sampling.windows((10, 12), (8, 8), 2):
        part = np.s_[top : top + 8, left : left + 8]
        logits = np.asarray(logits_of(jnp.asarray(found[:, *part].reshape(2, -1)))).argmax(-1).reshape(2, 8, 8)
        fresh = ~known[part]
        np.testing.assert_array_equal(found[:, *part][:, fresh], logits[:, fresh])
        known[part] = True


def test_kept_codes_of_a_picture_stay(prior, trained):
    picture = RNG.integers(0, 256, (1, 16, 16, 3), np.uint8)
    keep = RNG.random((8, 8)) < 0.5
    found = prior.sample_codes(3, 2, init_image=picture, keep=keep)
    np.testing.assert_array_equal(found[:, keep], np.broadcast_to(trained.encode(picture)[0][keep], (3, keep.sum())))
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n = 0 must be at least 1"),
        ({"labels": 80}, r"labels 80 to 80: this model knows 0 to 79"),
        ({"n": 2, "labels": [1]}, "1 labels for 2 pictures"),
        ({"temperature": -1}, "temperature = -1 must be 0 or more"),
        ({"top_k": 17}, r"top_k = 17 must be in \[1, 16\]"),
        ({"top_p": 0}, r"top_p = 0 must be in \(0, 1\]"),
        ({"size": (12, 16)}, "must be at least 16"),
        ({"size": (17, 16)}, "divisible by 2"),
        ({"size": (32, 32), "stride": 9}, r"stride = 9 must be in \[1, 8\]"),
        ({"keep": np.ones((8, 8), bool)}, "belong together"),
    ],
)
def test_mistakes_are_named(prior, options, message):
    with pytest.raises(ValueError, match=message):
        prior.sample_codes(**options)


def test_a_run_keeps_its_tokenizer(run, trained, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(run[1], moved)
    found = vqgan_jax.load_prior(moved)
    assert found.vqgan.fingerprint == trained.fingerprint
    np.testing.assert_array_equal(
        found.vqgan.encode(np.zeros((1, 16, 16, 3), np.uint8)), trained.encode(np.zeros((1, 16, 16, 3), np.uint8))
    )
    (moved / "vqgan.safetensors").write_bytes(b"x")
    with pytest.raises(LoadError, match="wrong vqgan.safetensors for the weights"):
        vqgan_jax.load_prior(moved)


def test_guidance_is_refused_to_a_run_that_hid_no_labels(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"label_dropout": 0.0}))
    found = vqgan_jax.load_prior(tmp_path / "run")
    with pytest.raises(ValueError, match="guidance = 2: .* train with label_dropout above 0"):
        found.sample_codes(1, 3, guidance=2)
    with pytest.raises(ValueError, match="knows no image without a label"):
        found.sample_codes(1)


@pytest.mark.parametrize("change", [{"label_dropout": 0.0}, {"model": {"classes": 0, "width": 16, "heads": 2}}])
def test_guidance_is_refused_before_a_run_that_has_nothing_to_guide(tiny, change):
    config = config_lib.resolve(ConfigDict(prior_config(tiny).to_dict() | {"evals": {}} | change))
    made = task_lib.make(config, None)
    options = ConfigDict(task_lib.evaluators.defaults().samples.to_dict() | {"guidance": 2.0})
    context = Context(sharding.make_mesh(config.mesh), config, made)
    message = "guidance = 2.0; it must be 1 where config.model.classes or config.label_dropout is 0"
    with pytest.raises(ConfigError, match=message):
        made.evaluators["samples"](options, context)


@pytest.mark.parametrize(
    "option, allowed",
    [
        ({"n": 0}, "at least 1"),
        ({"columns": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": 2**32}, r"in \[0, 2\^32\)"),
        ({"temperature": -1.0}, "0 or more"),
        ({"temperature": 1e39}, "0 or more, as float32 has it"),
        ({"top_k": 13}, r"in \[0, 12\], 0 for all codes"),
        ({"top_p": 0.0}, r"in \(0, 1\]"),
        ({"guidance": 1e39}, "a number that float32 has"),
    ],
)
def test_options_by_which_nothing_can_be_drawn_are_named(option, allowed):
    options = ConfigDict(task_lib.evaluators.defaults().samples.to_dict() | option)
    with pytest.raises(ConfigError, match=f"config.evals.….{next(iter(option))} = .*; it must be {allowed}"):
        task_lib.evaluators.check_drawing(options, 12, "")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optim": {"name": "adamx"}}, "adamx"),
        ({"optim": {"freeze": ("nothing",)}}, "nothing"),
        ({"optim": {"players": {"generator": {"lr": 1e-3}}}}, "names .*generator.* this task's players are .*prior"),
        ({"ema": {"players": ("generator",)}}, "config.ema.players names .*generator.* this task's players are .*prior"),
    ],
)
def test_mistakes_of_training_are_found_before_codes_are_computed(tiny, change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_jax.run(ConfigDict(prior_config(tiny).to_dict() | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"vqgan": 3}, {"label_dropout": "none"}, {"model": 3}])
def test_a_run_whose_config_is_odd_is_named(run, tmp_path, change):
    shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(LoadError, match="describes no model that can be built"):
        vqgan_jax.load_prior(tmp_path / "run")


def test_other_things_are_no_second_stage(tiny, tmp_path):
    with pytest.raises(LoadError, match="is a run of 'vqgan_jax.task'"):
        vqgan_jax.load_prior(tiny[1])
    with pytest.raises(LoadError, match="no run directory"):
        vqgan_jax.load_prior(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vqgan.path": ""}, "config.vqgan.path is empty"),
        ({"vqgan.size": 17}, "config.vqgan.size = 17 must be divisible by 2"),
        ({"label_dropout": 1.0}, "config.label_dropout = 1.0"),
        ({"model.heads": 3}, "config.model.width = 16; it must be a multiple"),
    ],
)
def test_wrong_options_are_named(tiny, change, message):
    config = prior_config(tiny)
    full = config_lib.resolve(config)
    full.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        task_lib.make(full, None)


def test_the_command_line_draws_what_the_model_draws(run, prior, tmp_path, capsys):
    out = tmp_path / "grid.png"
    arguments = ["sample", "--model", str(run[1]), "--out", str(out), "--n", "3", "--columns", "2", "--class", "5"]
    assert cli.main([*arguments, "--seed", "4", "--top-p", "0.9", "--guidance", "2"]) == 0
    wanted = prior.sample(3, 5, seed=4, top_p=0.9, guidance=2.0)
    with Image.open(out) as image:
        seen = np.asarray(image)[::8, ::8]  # 16 pixels are shown as 128
    assert seen.shape == (34, 34, 3)
    np.testing.assert_array_equal(seen[:16, 18:], wanted[1])
    capsys.readouterr()
    for extra, message in (
        (["--size", "9"], "write height and width"),
        (["--top-k", "99"], "top_k = 99 must be in [1, 16]"),
    ):
        assert cli.main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["sample", "--model", str(tmp_path), "--out", str(out)]) == 2
    assert "no run directory" in capsys.readouterr().err

"""`config.pretrained` of second stages: training on from runs and from public weights."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import dalle_jax
import train_jax
import vqgan_jax
from dalle_jax import task as dalle_task
from dalle_jax.captions import parse_captions
from tests.shared_run import on_one_device
from train_jax import adapters, config_file, finetune
from train_jax import config as config_lib
from train_jax.data import sources
from train_jax.data.images import decode
from train_jax.errors import ConfigError, LoadError
from vqgan_jax.prior import task as prior_task

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VQGAN = str(GOLDEN / "vqgan" / "dalle-mini")
PUBLIC = {
    "mindalle": "", "dalle-mini": VQGAN, "dalle-mini-cogview": VQGAN, "rudalle-v2": VQGAN, "rudalle-v3": VQGAN,
}  # fmt: skip


def config_of(start: str | Path, data_dir: str, vqgan: str = "", **changes) -> ConfigDict:
    c = ConfigDict({"task": "dalle_jax.task", "steps": 2, "pretrained": str(start), "vqgan": {"path": vqgan}})
    c.data = {"source": "digits", "batch_size": 8, "data_dir": data_dir}
    c.optim, c.dropout = {"lr": 1e-12}, 0.0
    return ConfigDict(c.to_dict() | changes)


def make(*arguments, **changes):
    return dalle_task.make(config_lib.resolve(config_of(*arguments, **changes)), None)


def check_start(task, params) -> None:
    """The run starts from these parameters, which are all of its model, in its layout."""
    start = task.pretrained()[0]["generator"]
    expected = nn.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0), {}))[0]["generator"])
    assert jax.tree.map(np.shape, start) == jax.tree.map(np.shape, expected)
    jax.tree.map(np.testing.assert_array_equal, start, params)


def test_a_run_goes_on_from_another(tiny, trained):
    config, run = tiny
    task = make(run, config.data.data_dir, compute={"scan": False})
    check_start(task, trained.variables)
    assert task.artifacts["tokenizer.json"] == (run / "tokenizer.json").read_text()
    assert task.artifacts["vqgan.safetensors"] == (run / "vqgan.safetensors").read_bytes()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_weights_are_a_start(tiny, name):
    folder, data_dir = GOLDEN / "dalle" / name, tiny[0].data.data_dir
    model = dalle_jax.load(folder, vqgan=PUBLIC[name] or None)
    config = config_lib.resolve(config_of(folder, data_dir, PUBLIC[name], compute={"scan": False}))
    assert config.vqgan.size == model.size and config.model.width == 16
    task = dalle_task.make(config, None)
    check_start(task, model.variables)
    captions = parse_captions(task.artifacts["tokenizer.json"], config.model.text_length, True)
    texts = ["a red circle", "красный круг", "", "a small red circle above a large blue star " * 9]
    texts = texts[:1] + texts[2:] if name == "dalle-mini" else texts  # its transliteration is an extra
    for ours, theirs in zip(captions.encode_flagged(texts), model.condition.encode_flagged(texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (captions.fingerprint, captions.padding) == (model.condition.fingerprint, model.condition.padding)
    assert captions.droppable, "captions are dropped in training, so guidance is possible"


def test_a_run_from_public_weights_is_a_model_like_any_other(tiny, tmp_path):
    """Two updates that change nothing, by a resumed run; then the run alone, without the files that it started from."""
    folder, data_dir = GOLDEN / "dalle" / "dalle-mini", tiny[0].data.data_dir
    with np.load(folder / "outputs.npz") as file:
        outputs = dict(file)
    with on_one_device():
        for steps in (1, 2):
            train_jax.run(config_of(folder, data_dir, VQGAN, steps=steps), tmp_path / "run")
    model = dalle_jax.load(tmp_path / "run")
    logits = model.logits(model.condition.encode([str(prompt) for prompt in outputs["prompts"]]), outputs["codes"])[1]
    np.testing.assert_allclose(logits, outputs["logits"][..., :24], atol=1e-4)
    assert model.generate(["a cat"], guidance=2.0, progress=False).shape == (1, 1, 8, 8, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"width": 32}}, "config.model.width = 32, but the checkpoint of config.pretrained has 16: leave it out"),
        ({"model": {"encoder_depth": 0}}, "config.model.encoder_depth = 0, but the checkpoint .* has 2"),
        ({"tokenizer": {"vocab_size": 300}}, "config.tokenizer with config.pretrained: the tokenizer comes with"),
        ({"tokenizer": {"dropout": 0.1}}, "BPE dropout = 0.1: it must be 0 with the tokenizer of another project"),
        ({"vqgan": {"size": 16}}, "config.vqgan.size = 16, but config.pretrained was trained on the codes of 8 x 8 pixels"),
    ],
)
def test_what_contradicts_the_weights_is_refused_before_anything_is_computed(tiny, changes, message):
    config = config_of(GOLDEN / "dalle" / "dalle-mini", tiny[0].data.data_dir, VQGAN)
    for key, values in changes.items():
        config[key] = {**config.get(key, {}), **values}
    with pytest.raises(ConfigError, match=message):
        dalle_task.make(config_lib.resolve(config), None)


def test_codes_of_another_vqgan_are_refused(tiny, tmp_path):
    with pytest.raises(LoadError, match="contains the VQGAN of its codes: leave out"):
        make(tiny[1], tiny[0].data.data_dir, VQGAN)
    with pytest.raises(LoadError, match="is a VQGAN of 12 codes, but .* has decoder_start_token_id = 24"):
        make(GOLDEN / "dalle" / "dalle-mini", tiny[0].data.data_dir, str(tiny[1] / "vqgan.safetensors"))


@pytest.mark.parametrize("name, vqgan", [("gumbel/stage2.ckpt", ""), ("llamagen-prior", VQGAN)])
def test_a_prior_goes_on_from_public_weights(name, vqgan):
    config = {"task": "vqgan_jax.prior.task", "steps": 1, "pretrained": str(GOLDEN / "vqgan" / name)}
    config |= {"data": {"source": "digits"}, "compute": {"scan": False}, "vqgan": {"path": vqgan}}
    model = vqgan_jax.load_prior(config["pretrained"], dtype=None, vqgan=vqgan or None)
    check_start(prior_task.make(config_lib.resolve(ConfigDict(config)), None), model.variables)
    if vqgan:
        return
    with pytest.raises(LoadError, match="contains the VQGAN of its codes: leave out the VQGAN 'x'"):
        config_lib.resolve(ConfigDict(config | {"vqgan": {"path": "x"}}))
    with pytest.raises(ConfigError, match="config.model.classes = 77, but the checkpoint"):
        config_lib.resolve(ConfigDict(config | {"model": {"classes": 77}}))


def mean_bits(model, data_dir: str, split: str, condition) -> float:
    """The mean bits of a code of the images of a split, each given its condition, by `score`."""
    source = sources.open_source("digits", split, data_dir=data_dir)
    records = [source[index] for index in range(len(source))]
    scores = [model.score([condition(record)], [decode(record["image"])])[0, 0] for record in records]
    return -np.mean(scores) / model.module.length / np.log(2)


@pytest.mark.parametrize("family, start", [("dalle", "run"), ("dalle", "mindalle"), ("prior", "gumbel/stage2.ckpt")])
def test_fine_tuning_tells_the_bits_of_new_and_old_data(tiny, tmp_path, capsys, family, start):
    """Before, those of the model that it starts from; after, those of the run and, at the chosen point, of best/."""
    run = tmp_path / "tuned"
    path, load, condition = (
        (GOLDEN / "vqgan" / start, vqgan_jax.load_prior, lambda record: int(record["label"]))
        if family == "prior"
        else (tiny[1] if start == "run" else GOLDEN / "dalle" / start, dalle_jax.load, lambda record: record["captions"][0])
    )
    words = [str(path), f"--family={family}", "--data=digits", "--keep=digits@train[:6]", "--alpha=0,1", f"--workdir={run}"]
    words += [f"--config.data.data_dir={tiny[0].data.data_dir}", "--config.evals.new.split=test[:6]", "--config.steps=2"]
    words += ["--config.data.split=train[:16]", "--config.data.batch_size=8", "--config.optim.lr=0.01"]
    if family == "prior":
        words.append("--config.optim.lora=(('attention', 2, 4.0), ('mlp', 1, 1.0))")
    with on_one_device():
        assert finetune.main([*words, "--config.optim.warmup_steps=0", "--config.condition_dropout=0", "--tolerance=9"]) == 0
    *_, head, first, last, new, old, chosen = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in (head, first, last)] == ["alpha", "0.00", "1.00"] and "line.png" in chosen
    columns = head.split()[1:]
    for row, model in (first, load(path)), (last, load(run)):
        values = dict(zip(columns, map(float, row.split()[1:]), strict=True))
        for name, split in ("new", "test[:6]"), ("old", "train[:6]"):
            expected = mean_bits(model, tiny[0].data.data_dir, split, condition)
            np.testing.assert_allclose(values[f"{name}/bits_per_code"], expected, rtol=1e-3)  # of four digits
    assert new.startswith("new/bits_per_code: ") and old.startswith("old/bits_per_code: ")
    bits = [float(row.split()[1 + columns.index("new/bits_per_code")]) for row in (first, last)]
    assert float(chosen.split()[1].rstrip(":")) == int(np.argmin(bits)), "fewer bits are better"
    assert load(run / "best").size == load(path).size
    if family == "prior":
        assert adapters.main([str(path), str(run / adapters.FILE), f"--workdir={tmp_path / 'merged'}"]) == 0
        assert load(tmp_path / "merged").fingerprint == load(run).fingerprint != load(path).fingerprint


@pytest.mark.slow
def test_public_weights_learn_a_folder_until_they_draw_it(tmp_path):
    """minDALL-E's layout: before, the likeliest codes of a caption are not those of its picture; after, all of them are."""
    captions = ["a red circle", "a blue star", "a large green ring", "something yellow"]
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in captions]
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    c = config_file.load("dalle/finetune")
    c.pretrained, c.steps, c.condition_dropout, c.evals = str(GOLDEN / "dalle" / "mindalle"), 200, 0.0, {}
    c.data = {"source": f"folder:{tmp_path}", "batch_size": 8}
    c.optim.lr, c.optim.warmup_steps, c.ema.decay = 1e-2, 20, 0.0
    start = dalle_jax.load(c.pretrained)
    with on_one_device():
        train_jax.run(c, tmp_path / "run")
    codes = start.vqgan.encode(pictures)
    assert len({tuple(x.ravel()) for x in codes}) == len(captions)
    right = [
        model.draw(captions, temperature=0, progress=False).codes[:, 0] == codes
        for model in (start, dalle_jax.load(tmp_path / "run"))
    ]
    assert not right[0].all(axis=(1, 2)).any() and right[1].all()

"""`train-jax` as it is typed: files, names, public weights, a user's pictures; mistakes are one line, before any work."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
import vqgan_jax
from train_jax import __main__ as entry
from train_jax import arguments, config_file, prepare, sharding
from train_jax.errors import Stopped

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLIP, VQGAN = GOLDEN / "clip" / "hf-clip", GOLDEN / "vqgan" / "diffusers"


class Begun(Exception):
    """Options, data and evaluators are right; what comes next is the state of `task`."""

    def __init__(self, task):
        super().__init__()
        self.task = task


@pytest.fixture
def begun(monkeypatch):
    """Runs raise Begun where their state would be planned."""

    def plan_state(task, *_, **__):
        raise Begun(task)

    monkeypatch.setattr(prepare, "plan_state", plan_state)


@pytest.fixture
def folder(tmp_path):
    """A user's folder of sixteen captioned pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"photo number {number}")
    return folder


@pytest.fixture
def refused(tmp_path, capsys):
    """`refused(words...)` -> the one line that is printed; there is no run directory and nothing was compiled."""

    def call(*words):
        def compiled(*_):
            raise AssertionError("compiled before everything was checked")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.stages.Lowered, "compile", compiled)
            with pytest.raises(SystemExit) as caught:
                entry.cli([f"--workdir={tmp_path / 'run'}", *words])
        assert not (tmp_path / "run").exists()
        line = str(caught.value.code) if caught.value.code != 2 else capsys.readouterr().err
        assert "Traceback" not in line
        assert caught.value.code == 2 or (line.startswith("error: ") and "\n" not in line)
        return line

    return call


def train_on(words, tmp_path):
    entry.cli([f"--workdir={tmp_path / 'run'}", *words])
    return json.loads((tmp_path / "run" / "config.json").read_text())


def finetune_clip(folder) -> list[str]:
    """README's command on a small directory."""
    words = ["--config=configs/clip/finetune.py", f"--config.pretrained={CLIP}", f"--config.data.source=folder:{folder}"]
    words += ["--config.steps=2", "--config.data.batch_size=8", "--config.optim.warmup_steps=1", "--config.optim.lr=1e-30"]
    return [*words, "--config.data.split=train[50%:]", "--config.evals.retrieval.split=train[:50%]"]


def check_initial_weights(task, player: str, expected, batch) -> None:
    """The first state has the checkpoint's layers and weights."""
    actual = task.pretrained()[0][player]
    jax.tree.map(np.testing.assert_array_equal, actual, jax.device_get(expected["params"]))
    drawn, _ = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
    assert jax.tree.map(np.shape, drawn[player]) == jax.tree.map(np.shape, actual)


def test_a_clip_starts_from_public_weights(folder, tmp_path, begun):
    with pytest.raises(Begun) as caught:
        entry.cli([f"--workdir={tmp_path / 'run'}", *finetune_clip(folder)])
    clip = clip_jax.load(CLIP)
    batch = {"text": np.zeros((1, clip.tokenizer.context_length), np.int32)}
    check_initial_weights(caught.value.task, "clip", clip.variables, batch)


@pytest.mark.slow
def test_a_clip_that_learns_almost_nothing_is_its_checkpoint(folder, tmp_path):
    config = train_on(finetune_clip(folder), tmp_path)
    assert config["model"]["embed_dim"] == 20 and config["optim"]["lr"] == 1e-30
    pictures = sorted(folder.glob("*.png"))[:2]
    trained, public = clip_jax.load(tmp_path / "run"), clip_jax.load(CLIP)
    np.testing.assert_allclose(trained.encode_image(pictures), public.encode_image(pictures), atol=1e-6)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["retrieval/images"] for row in logged if "retrieval/images" in row] == [8]


def test_a_vqgan_starts_from_public_weights(folder, tmp_path, begun):
    words = ["--config=vqgan/finetune", f"--config.pretrained={VQGAN}", f"--config.data.source=folder:{folder}"]
    words += ["--config.perceptual.type=none", "--config.model.resolution=16", "--config.evals.test.split=train[:50%]"]
    with pytest.raises(Begun) as caught:
        entry.cli([f"--workdir={tmp_path / 'run'}", *words])
    check_initial_weights(caught.value.task, "generator", vqgan_jax.load(VQGAN).variables, {})


def test_a_stopped_run_ends_with_the_code_of_its_signal(monkeypatch, tmp_path, capsys):
    def stopped(*_, **__):
        raise Stopped(3, 15)

    monkeypatch.setattr("train_jax.run", stopped, raising=False)
    with pytest.raises(SystemExit) as caught:
        entry.cli(["--config=clip/shapes", f"--workdir={tmp_path}"])
    assert caught.value.code == 143 and "stopped after step 3" in capsys.readouterr().err


def test_ctrl_c_before_the_first_update_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("train_jax.run", interrupted, raising=False)
    with pytest.raises(SystemExit) as caught:
        entry.cli(["--config=clip/shapes", f"--workdir={tmp_path}"])
    assert caught.value.code == 130 and "interrupted; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("words, reset", [([], False), (["--reset-optimizer"], True)])
def test_the_optimiser_is_reset_on_request(words, reset, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("train_jax.run", lambda config, workdir, **options: asked.update(options), raising=False)
    entry.cli(["--config=clip/shapes", f"--workdir={tmp_path}", *words])
    assert asked == {"profile": False, "reset_optimizer": reset}


def test_a_tilde_after_an_equals_sign_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--out=~/a.png", "--config=~/my.py", "--config.pretrained=~/b"]
    others = ["a ~/c", "~/d", "--prompt=a ~/ b", "--x", "=~/e"]
    expected = ["--out=/home/me/a.png", "--config=/home/me/my.py", "--config.pretrained=/home/me/b"]
    assert arguments.expand_home([*words, *others]) == [*expected, *others]
    with pytest.raises(SystemExit, match="there is no such file or config"):
        entry.cli(["--config=~/my.py", "--workdir=x"])


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as caught:
        entry.cli(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "--workdir" in shown and "train-jax --config=configs/clip/shapes.py" in shown


@pytest.mark.parametrize("config", ["clip/vit_b32", "clip/siglip_b16", "clip/rn50"])
def test_a_clip_that_contradicts_a_checkpoint_names_the_config_that_does_not(config, refused):
    line = refused(f"--config={config}", f"--config.pretrained={CLIP}")
    assert "but the checkpoint of config.pretrained has" in line and "--config=clip/finetune" in line


def test_a_vqgan_that_contradicts_a_checkpoint_names_the_config_that_does_not(refused):
    line = refused("--config=vqgan/f16_1024", f"--config.pretrained={VQGAN}")
    assert "but the checkpoint of config.pretrained has" in line and "--config=vqgan/finetune" in line


@pytest.mark.parametrize(
    "config, remedy",
    [
        ("vit_b32", "hf download openai/clip-vit-base-patch32 tokenizer.json --local-dir tokenizers/clip"),
        ("siglip_b16", "hf download google/siglip-base-patch16-224 spiece.model --local-dir tokenizers/siglip"),
    ],
)
def test_a_missing_tokenizer_says_where_there_is_one(config, remedy, refused, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # as a fresh clone, without tokenizers/
    assert remedy in refused(f"--config=clip/{config}", f"--config.data.source=folder:{folder}")


# What a tiny model of one's own folder needs besides.
OWN = ["--config.data.batch_size=8", "--config.compute.dtype=float32"]
# What configs that read another model need besides, by the beginning of their names.
MODELS = {
    "vqgan/prior": [f"--config.vqgan.path={VQGAN}"],
    "dalle/": [f"--config.vqgan.path={VQGAN}"],
    "unclip/prior": [f"--config.clip.path={CLIP}"],
    "unclip/decoder": [f"--config.clip.path={CLIP}", "--config.prior.path="],
}
SMALL = [name for name in config_file.names() if name.split("/")[1].split("_")[-1] in ("shapes", "digits", "emoji", "demo")]


@pytest.mark.parametrize("config", SMALL)
def test_a_folder_of_pictures_trains_by_every_small_config(config, refused, folder, tmp_path, begun):
    """Evaluators that the folder cannot serve are named with a remedy; without them training begins."""
    models = next((words for name, words in MODELS.items() if config.startswith(name)), [])
    words = [f"--config={config}", f"--config.data.source=folder:{folder}", *OWN, *models]
    line = refused(*words)
    assert "--config.evals=none" in line and ("has no split" in line or "not prepared yet" in line)

    with pytest.raises(Begun):
        entry.cli([f"--workdir={tmp_path / 'run'}", *words, "--config.evals=none"])


@pytest.mark.parametrize(
    "words, line",
    [
        (["--config=clip/shaeps"], "did you mean --config=clip/shapes?"),
        (["--config=clip/shapes", "--config.optim.lr=fast"], "config.optim.lr = 'fast' is of type str"),
        (["--config=clip/shapes", "--config.stepz=3"], "did you mean config.steps?"),
        (["--config=clip/shapes", "--config.steps"], "an option is written --config.NAME=VALUE"),
        (["--config=clip/shapes", "--config.steps", "3"], "unexpected argument '3'"),
        (["--config=clip/shapes", "steps=3"], "unexpected argument 'steps=3'"),
        (["--config=clip/shapes", "--prolife"], "unexpected argument '--prolife'"),
        (["--config=clip/shapes", "--coordinator=localhost:1"], "give all three"),
        ([], "--config"),
        (["--config=clip/shapes", "--config.tokenizer.vocab_size=3"], "vocab_size = 3"),
        (["--config=clip/shapes", "--config.mesh.data=3"], "3 does not divide 8"),
        (["--config=clip/shapes", "--config.data.batch_size=12"], "multiple of 8"),
        (["--config=clip/shapes", "--config.data.split=tarin"], "has no split 'tarin'"),
        (["--config=clip/shapes", "--config.evals.novel.templates=('no place',)"], "has no {}"),
        (["--config=clip/shapes", "--config.evals.x.type=linear_probe", "--config.evals.x.train_split=none"], "evals.x"),
        (["--config=clip/shapes", "--config.optim.name=adamm"], "is not an optimiser of optax"),
        (["--config=clip/shapes", "--config.optim.players.clip.name=adamm"], "is not an optimiser of optax"),
        (["--config=clip/shapes", "--config.optim.freeze=visoin"], "matches no parameter"),
        (["--config=clip/shapes", "--config.ema.decay=0.9", "--config.ema.players=dalle"], "config.ema.players"),
        (["--config=vqgan/shapes", "--config.loss.pixels=l3"], "config.loss.pixels = 'l3'"),
        (["--config=vqgan/f16_1024"], "config.perceptual.path"),
        (["--config=vqgan/f16_1024", "--config.perceptual.path=nowhere.ckpt"], "config.perceptual.path: "),
        (["--config=dalle/mindalle_1b3"], "config.vqgan.path is empty"),
    ],
)
def test_mistakes_are_one_line(words, line, refused, shapes_data):
    assert line in refused(*words, *([f"--config.data.data_dir={shapes_data}"] if words and "shapes" in words[0] else []))


@pytest.fixture(scope="module")
def shapes_data(tmp_path_factory):
    from unittest import mock

    from train_jax.datasets import shapes
    from train_jax.datasets.shapes import shapes_dataset_builder

    folder = tmp_path_factory.mktemp("shapes")
    with mock.patch.object(shapes_dataset_builder, "EXAMPLES", {"train": 64, "test": 40, "novel": 16}):
        shapes.builder("32", data_dir=str(folder))
    return folder


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_workdir_that_is_a_file_is_refused(inside, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="is a file. Choose another --workdir"):
        entry.cli(["--config=clip/digits", f"--workdir={tmp_path / 'file' / inside}"])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_config_that_fails_is_one_line(refused, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return undefined\n")
    line = refused(f"--config={tmp_path / 'mine.py'}")
    assert "NameError: name 'undefined' is not defined (line 2)" in line

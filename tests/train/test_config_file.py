"""Configs by path and by name, and options stated on a command line: read in their own type, and the user's alone."""

import pytest
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file
from train_jax.errors import ConfigError


def minimal(**changes):
    return ConfigDict({"task": "toy_task", "steps": 10, "data": {"source": "digits"}, **changes})


def written(folder, body, name="mine.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(body)
    return folder / name


def test_a_config_is_a_file_or_one_of_the_shipped_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_name = config_file.load("clip/demo")
    assert by_name == config_file.load(config_file.FOLDER / "clip" / "demo.py") and by_name.steps == 400
    assert {"clip/demo", "vqgan/f16_1024", "dalle/shapes"} <= set(config_file.names())


def test_a_file_imports_its_neighbours_and_leaves_no_trace(tmp_path):
    """Two folders with files of equal names, and a file that is written anew, are each what they say now."""
    body = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'steps': 1})\n"
    changed = "from . import base\ndef get_config():\n    c = base.get_config()\n    c.steps += 1\n    return c\n"
    for number, folder in enumerate((tmp_path / "a.b", tmp_path / "b")):
        written(folder, body.replace("1}", f"{10 * number}}}"), "base.py")
        assert config_file.load(written(folder, changed)).steps == 10 * number + 1
    written(folder, body.replace("1}", "50}"), "base.py")
    assert config_file.load(folder / "mine.py").steps == 51
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    "body, words",
    [
        ("x = 1\n", "defines no get_config"),
        ("def get_config():\n    return 1 / 0\n", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("def get_config():\n    pass\n", "returns a NoneType"),
    ],
)
def test_a_file_that_makes_no_config_is_named(tmp_path, body, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config_file.load(written(tmp_path, body))
    assert "mine.py" in str(caught.value)


def test_a_name_that_is_not_there_suggests_one_that_is():
    with pytest.raises(ConfigError, match=r"did you mean --config=clip/shapes\?"):
        config_file.load("configs/clip/shaeps.py")


@pytest.mark.parametrize(
    "word, path, value",
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("steps=12", "steps", 12),
        ("mesh.data=-1", "mesh.data", -1),
        ("data.source=3 folder:a | 1 folder:b", "data.source", "3 folder:a | 1 folder:b"),
        ("data.data_dir=12", "data.data_dir", "12"),
        ("ema.players=('generator',)", "ema.players", ("generator",)),
        ("ema.players=generator", "ema.players", ("generator",)),
        ("data.templates=a {}.", "data.templates", ("a {}.",)),
        ("optim.freeze=['a', 'b']", "optim.freeze", ("a", "b")),
        ("optim.args.b2=0.99", "optim.args.b2", 0.99),
        ("optim.args.nesterov=true", "optim.args.nesterov", True),
        ("optim.players.generator.lr=0.5", "optim.players.generator.lr", 0.5),
        ("evals.end.scale=2", "evals.end.scale", 2.0),
        ("evals.late.type=norm", "evals.late.type", "norm"),
    ],
)
def test_values_are_read_in_the_type_of_the_option(word, path, value):
    config = config_file.override(minimal(evals={"end": {"type": "norm"}}), [f"--config.{word}"])
    actual = config_lib.resolve(config)
    for key in path.split("."):
        actual = actual[key]
    assert actual == value and type(actual) is type(value)


def test_what_is_stated_is_what_a_file_would_state():
    """Nothing else: no default becomes the user's own."""
    words = ["--config.optim.lr=0.5", "--config.steps=7", "--config.steps=8"]
    config = config_file.override(minimal(), words)
    assert config.to_dict() == minimal().to_dict() | {"optim": {"lr": 0.5}, "steps": 8}


@pytest.mark.parametrize(
    "word, words",
    [
        ("steps=many", "config.steps = 'many' is of type str; it must be of type int"),
        ("steps=1.5", "config.steps = 1.5 is of type float"),
        ("stepz=1", r"did you mean config.steps\?"),
        ("optim.nmae=adam", r"did you mean config.optim.name\?"),
        ("optim=adam", "must be a group of options"),
        ("steps.x=1", "--config.steps is one option, not a group"),
        ("evals.end.type.x=1", "--config.evals.end.type is one option, not a group"),
        ("steps", "an option is written --config.NAME=VALUE"),
        ("optim..lr=1", "an option is written --config.NAME=VALUE"),
        ("evals.end.scael=1", r"did you mean config.evals.end.scale\?"),
        ("evals.end=norm", "config.evals.end = 'norm' must be a group of options"),
    ],
)
def test_wrong_words_are_named(word, words):
    with pytest.raises(ConfigError, match=words):
        config_lib.resolve(config_file.override(minimal(evals={"end": {"type": "norm"}}), [f"--config.{word}"]))


@pytest.mark.parametrize("word, left", [("evals.a=none", ["b"]), ("evals.b=None", ["a"]), ("evals=none", [])])
def test_evaluators_can_be_left_out(word, left):
    config = config_file.override(
        minimal(evals={"a": {"type": "norm"}, "b": {"type": "norm"}}), [f"--config.{word}"]
    )
    assert list(config_lib.resolve(config).evals) == left


def test_a_machine_says_how_to_compute_and_nothing_else():
    config = config_file.load("clip/vit_b32")
    actual = config_file.on_machine(config, "v5e_16")
    assert actual.compute.to_dict() == {"dtype": "bfloat16", "remat": "full", "scan": True, "micro_batch": 256}
    assert actual.mesh.to_dict() == {"data": 1, "fsdp": -1, "tensor": 1} and actual.data.workers == 16
    assert actual.model == config.model and actual.optim == config.optim and actual.data.source == config.data.source
    vqgan = config_file.on_machine(config_file.load("vqgan/shapes"), "v5e_16")  # whose layers are not scanned
    assert vqgan.compute.to_dict() == {"dtype": "bfloat16", "remat": "full"}
    assert config_file.override(actual, ["--config.compute.dtype=float32"]).compute.dtype == "float32"


@pytest.mark.parametrize("machine", config_file.machines())
def test_every_machine_suits_every_config(machine):
    for name in config_file.names():
        config_lib.fill(config_file.on_machine(config_file.load(name), machine))


def test_a_machine_that_is_none_is_named():
    with pytest.raises(ConfigError, match="--machine=h200: there is no such file or machine. Machines by name: 8xh100, cpu"):
        config_file.on_machine(config_file.load("clip/vit_b32"), "h200")


@pytest.mark.parametrize(
    "preset, words",
    [
        ({"mesh": {"fsdpp": 2}}, "config.mesh.fsdpp is not an option"),
        ({"dta": {"workers": 2}}, "config.dta.workers is not an option"),
        ({"steps": 2}, "steps = 2 is no group of options"),
    ],
)
def test_mistakes_in_a_preset_are_named(tmp_path, preset, words):
    file = written(tmp_path, f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({preset})\n")
    with pytest.raises(ConfigError, match=words):
        config_file.on_machine(config_file.load("clip/vit_b32"), str(file))


def test_a_module_of_ones_own_that_is_not_found_has_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match="No module named 'my_loss' .line 1.; the folder .* must be on PYTHONPATH"):
        config_file.load(written(tmp_path, "import my_loss\n"))

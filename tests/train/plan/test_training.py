"""Plans of training runs on fake devices, against sums over the parameters, and for TPUs where their compiler is."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_clip import CLIP

from train_jax import config as config_lib
from train_jax import config_file, prepare, sharding
from train_jax import task as task_lib
from train_jax.errors import ConfigError
from train_jax.plan import command, compilation, training
from train_jax.plan.hlo import Collective
from train_jax.plan.report import Plan
from train_jax.plan.targets import Target
from train_jax.step import StatePlan, TrainState


@pytest.fixture(autouse=True)
def _devices_are_there(monkeypatch):
    monkeypatch.setattr(Target, "set_environment", lambda self: None)


@pytest.fixture
def config_file_of_clip(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({CLIP!r})\n")
    return file


def test_a_plan_of_the_command_line_has_the_bytes_of_the_shards(config_file_of_clip, tmp_path, capsys):
    """Parameters and Adam's two moments, split over fsdp where an axis allows it; no data, no tokenizer."""
    assert command.main([f"--config={config_file_of_clip}", "--target=fake:8", "--mesh=data=-1,fsdp=4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    derived = ("mfu", "examples_per_second", "seconds_per_example")
    assert [printed.pop(name) for name in derived] == [None] * 3
    printed |= {"collectives": tuple(Collective(**row) for row in printed["collectives"]), "expensive": ()}
    plan = Plan(**printed)
    config, _ = task_lib.module(ConfigDict(CLIP)).write_placeholders(config_lib.resolve(ConfigDict(CLIP)), tmp_path)
    task = task_lib.module(config).make(config, tmp_path)
    batch = {"image": jnp.zeros((1, 16, 16, 3)), "text": jnp.zeros((1, 77), jnp.int32)}
    boxed, _ = jax.eval_shape(task.init, jax.random.key(0), batch)
    count = local = 0
    for leaf in jax.tree.leaves(boxed, is_leaf=sharding.is_box):
        value, names = (leaf.value, leaf.names) if sharding.is_box(leaf) else (leaf, ())
        count += value.size
        local += value.size // 4 if any(dict(sharding.RULES).get(name) == "fsdp" for name in names) else value.size
    assert plan.parameters == count
    assert plan.parts["parameters"] == plan.parts["gradients"] == 4 * local
    assert plan.parts["optimiser state"] == pytest.approx(2 * 4 * local, abs=16)  # and counters
    assert plan.flops == task.flops * 32 and plan.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert plan.fits is None and plan.step_seconds is None and plan.mfu is None
    assert plan.peak_bytes > plan.parts["parameters"] + plan.parts["optimiser state"]
    kinds = {row.kind for row in plan.collectives}
    assert {"all-reduce", "all-gather"} <= kinds
    assert f"{count:,} parameters" in str(plan) and "mesh data 2 x fsdp 4" in str(plan)


def test_residuals_are_those_of_two_linear_layers():
    """y = x W V: the backward pass reads x and x W."""

    def loss(params, extra, batch, rng, step):
        return jnp.mean(batch["x"] @ params["p"]["w"] @ params["p"]["v"]), ({}, {})

    task = task_lib.Task(init=len, loss=loss, example=len)
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    params = {"p": {"w": jax.ShapeDtypeStruct((5, 7), jnp.float32), "v": jax.ShapeDtypeStruct((7, 3), jnp.float32)}}
    batch = {"x": jax.ShapeDtypeStruct((16, 5), jnp.float32, sharding=sharding.batch_sharding(mesh))}
    state = TrainState(step=None, params=params, extra={}, opt_state=None, ema=None, counters={})
    plan = StatePlan(create=len, abstract=state, optimizer=None, init=None)
    config = ConfigDict({"data": {"batch_size": 16}, "accumulate": 1})
    assert training.count_residuals(task, plan, batch, config, mesh) == 2 * (4 * 5 + 4 * 7)  # of 2 rows a device


def test_tracing_a_step_runs_nothing(monkeypatch, tmp_path):
    """Devices that are absent cannot run an operation, not even `jax.random.key`; every one is inside a traced function."""

    def refuse(self, primitive, *_):
        raise AssertionError(f"{primitive} runs on a device")

    config = config_lib.resolve(ConfigDict(CLIP | {"patch_dropout": 0.5, "ema": {"decay": 0.9}}))
    config, record = task_lib.module(config).write_placeholders(config, tmp_path)
    task = task_lib.module(config).make(config, tmp_path)
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    batch = training._abstract_batch(task, record, 32, mesh)
    monkeypatch.setattr("jax._src.core.EvalTrace.process_primitive", refuse)
    with pytest.raises(AssertionError, match="runs on a device"):
        jnp.zeros(1) + 1
    plan, step = prepare.trace_step(config, task, mesh, batch, {})
    assert training.count_residuals(task, plan, batch, config, mesh) > 0
    with jax.set_mesh(mesh):
        step.lower()


def test_what_a_compiler_needed_is_read_from_its_refusal():
    tpu = "Ran out of memory on HBM, the total memory required for HLO temporaries (157.87G) exceeds available HBM (15.75G)"
    assert compilation._parse_needed(tpu) == int(157.87 * 2**30)
    assert compilation._parse_needed("Used 20.5M of 15M hbm") == int(20.5 * 2**20)
    assert compilation._parse_needed("no number") == 0


def test_mistakes_on_the_command_line_are_one_line(config_file_of_clip, capsys):
    for arguments, words in [
        (["--target=v9:4x4"], "--target 'v9:4x4' must be CHIP:SHAPE with a chip of v4, v5e"),
        (["--target=h100:2x2x2"], "h100 has a shape of 1 or 2 number"),
        (["--target=fake:0"], "must be CHIP:SHAPE"),
        (["--target=fake:8", "--mesh=pipeline=2"], "--mesh 'pipeline=2' must be AXIS=SIZE"),
        (["--target=fake:8", "--config.data.batch_size=12"], "it must be a multiple of 8"),
        (["--target=fake:8", "--config.no=1"], "no"),
        (["--target=fake:8", "--what=sample"], "--what=sample: of clip_jax.task these are planned: train, encode"),
        (["--target=fake:8", "--what=encode", "--encode.images=12"], "--encode.images=12 must be a multiple of 8"),
        (["--target=fake:8", "--what=encode", "--encode.texts=0"], "--encode.texts = 0; it must be at least 1"),
        (["--target=fake:8", "--what=encode", "--encode.n=8"], "--encode.n is not an option"),
        (["--target=fake:8", "--what=encode", "--encode.images=8", "--encode.images.x=8"], "--encode.images is one option"),
        (["--target=fake:8", "--what=encode", "--mesh=data=8"], "weights are replicated"),
        (["--target=fake:8", "--max-plans=3"], "--max-plans=3 without --search"),
    ]:
        assert command.main([f"--config={config_file_of_clip}", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    with pytest.raises(SystemExit, match="2"):
        command.main([f"--config={config_file_of_clip}", "--target=fake:8", "--train.images=8"])
    assert "unexpected argument '--train.images=8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, frozen, shipped",
    [
        ("vqgan/demo", "", ""),
        ("vqgan/prior_digits", "vqgan", "vqgan/digits"),
        ("dalle/demo", "vqgan", "vqgan/digits"),
        ("unclip/prior_shapes", "clip", "clip/digits"),
        ("unclip/decoder_shapes", "clip", "clip/digits"),
        ("unclip/karlo_upsampler", "", ""),
    ],
)
def test_every_family_has_placeholders(name, frozen, shipped, tmp_path):
    config = config_file.load(name)
    if frozen:
        for path in ("not there", "vqgan/prior_digits"):
            config[frozen].path = path
            with pytest.raises(ConfigError, match="is no model. Name one, or a shipped config") as error:
                task_lib.module(config).write_placeholders(config_lib.resolve(config), tmp_path)
            listed = str(error.value).partition("placeholder: ")[2].split(", ")
            assert shipped in listed and all(x.startswith(f"{frozen}/") for x in listed) and "vqgan/prior" not in str(listed)
        config[frozen].path = shipped
    if name == "unclip/karlo_upsampler":
        config.model.update({"channels": (32,), "blocks": 1})  # quick to trace
    if name == "vqgan/demo":
        config.perceptual = {"type": "lpips", "path": "not there"}
    module = task_lib.module(config)
    config, record = module.write_placeholders(config_lib.resolve(config), tmp_path)
    task = module.make(config, tmp_path)
    example = task.example(record, np.random.default_rng(0))
    batch = {key: jax.ShapeDtypeStruct((2, *np.shape(x)), np.asarray(x).dtype) for key, x in example.items()}
    params, extra = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
    value, _ = jax.eval_shape(task.loss, params, extra, batch, jax.random.key(0), jnp.int32(0))
    assert value.shape == () and math.isfinite(task.flops or 0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'jax[tpu]'")
def test_a_plan_for_a_tpu_slice(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    target = Target.parse("v5e:2x2")
    plan = compilation.plan_program(training.trace_training(ConfigDict(CLIP), target), target)
    assert plan.fits and plan.devices == 4 and 0 < plan.floor_seconds < plan.step_seconds < 0.1 and plan.expensive

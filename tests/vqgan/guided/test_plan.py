"""The planned program of a painting has the arguments of the one that runs."""

import dataclasses

import jax
import pytest
from ml_collections import ConfigDict
from tiny_clip import CLIP

from train_jax import config_file
from train_jax.errors import ConfigError
from train_jax.plan import inference
from train_jax.plan.targets import Target
from vqgan_jax.guided import options, painting, plan, trajectory
from vqgan_jax.guided.drawers.grid import cell_map
from vqgan_jax.guided.prompts import parse_scene


@pytest.mark.parametrize("n, drawer", [(1, "vqgan"), (2, "vqgan"), (2, "strokes")])
def test_arguments_are_those_of_the_painter(vq, clip, n, drawer):
    resolved = options.resolve({"cuts": 4, "steps": 3, "drawer": drawer})
    jobs = [painting.Job(parse_scene("a star"), seed, resolved) for seed in range(n)]
    painter = painting.Painter(vq if drawer == "vqgan" else None, clip, jobs)
    preprocess = clip.preprocess
    perceptor = trajectory.Perceptor(clip.module, preprocess.size, tuple(preprocess.mean), tuple(preprocess.std))
    abstract = plan.abstract_arguments(painter.drawer, perceptor, resolved, n, painter.size)
    actual = (painter.variables, painter.problem, painter.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), actual)


def test_defaults_are_those_of_a_painting():
    defaults = {name: field.default for name, field in options.FIELDS.items()}
    planned = {field.name: field.default for field in dataclasses.fields(plan.PaintingOptions)}
    for name in ("cuts", "micro_cuts", "remat"):
        assert planned[name] == defaults[name]


def test_a_painting_without_a_vqgan_is_planned_by_the_config_of_a_clip():
    config = ConfigDict(CLIP)
    words = ["--paint.drawer=grid", "--paint.drawer_options=cells=6,shape=hex", "--paint.cuts=4", "--paint.n=2"]
    (program,) = inference.trace_inference(config, Target.parse("fake:2"), "paint", words)
    state = program.traced.in_avals[0][2]
    cells = int(cell_map("hex", 6, (32, 32)).max()) + 1
    assert state.z.shape == (2, cells, 3)
    vqgan = config_file.load("vqgan/shapes")
    with pytest.raises(ConfigError, match="with the config of a clip_jax.task; it needs a VQGAN's config"):
        inference.trace_inference(config, Target.parse("fake:2"), "paint", [])
    with pytest.raises(ConfigError, match="--paint.clip=clip/shapes: with drawer = grid the CLIP is that of --config"):
        inference.trace_inference(config, Target.parse("fake:2"), "paint", [*words, "--paint.clip=clip/shapes"])
    with pytest.raises(ConfigError, match="with the config of a vqgan_jax.task; it needs the config of a CLIP"):
        inference.trace_inference(vqgan, Target.parse("fake:2"), "paint", ["--paint.drawer=pixel"])

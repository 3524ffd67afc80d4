"""The planned program of a painting has the arguments of the one that runs."""

import dataclasses

import jax
import pytest

from vqgan_jax.guided import options, painting, plan, trajectory
from vqgan_jax.guided.prompts import parse_scene


@pytest.mark.parametrize("n", [1, 2])
def test_arguments_are_those_of_the_painter(vq, clip, n):
    resolved = options.resolve({"cuts": 4, "steps": 3})
    painter = painting.Painter(vq, clip, [painting.Job(parse_scene("a star"), seed, resolved) for seed in range(n)])
    preprocess = clip.preprocess
    perceptor = trajectory.Perceptor(clip.module, preprocess.size, tuple(preprocess.mean), tuple(preprocess.std))
    abstract = plan.abstract_arguments(vq.module, perceptor, resolved, n, painter.size)
    actual = (painter.variables, painter.problem, painter.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), actual)


def test_defaults_are_those_of_a_painting():
    defaults = {name: field.default for name, field in options.FIELDS.items()}
    planned = {field.name: field.default for field in dataclasses.fields(plan.PaintingOptions)}
    for name in ("cuts", "micro_cuts", "remat"):
        assert planned[name] == defaults[name]

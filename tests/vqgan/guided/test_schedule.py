"""Drops of the learning rate, and paintings that stop before the last step, beside a twin in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax import guided
from vqgan_jax.guided import options, stopping, trajectory
from vqgan_jax.guided.prompts import parse_scene

PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
FEW = PLAIN | {"drawer": "pixel", "size": (12, 16), "cuts": 4, "steps": 10, "save_every": 2, "progress": False}


def test_the_rate_drops_at_steps(clip):
    drops = jnp.array([2.0, 5.0])
    factors = [float(trajectory.rate_factor(drops, jnp.float32(0.5), jnp.int32(step))) for step in range(7)]
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    # A drop at the eighth of ten steps is a decay after four fifths of them.
    dropped = guided.paint(None, clip, "a star", lr_drops=(8,), lr_drop=0.25, **FEW)
    decayed = guided.paint(None, clip, "a star", lr_decay=0.25, lr_decay_at=0.8, **FEW)
    np.testing.assert_array_equal(dropped.latents, decayed.latents)
    assert (dropped.latents != guided.paint(None, clip, "a star", **FEW).latents).any()
    with pytest.raises(ConfigError, match="lr_drops = 10 has no effect: it must be below steps = 10"):
        guided.paint(None, clip, "a star", lr_drops=(3, 10), **FEW)
    with pytest.raises(ConfigError, match="lr_drop = 0.5 has no effect: give lr_drops"):
        options.resolve({"lr_drop": 0.5})


def stopping_step(losses: np.ndarray, after: int, share: float, settled: int = 0) -> int:
    """Number of steps of a painting whose losses these are, if it stops."""
    best, since = np.inf, settled
    for step, loss in list(enumerate(losses))[settled:]:
        if step - since > after:
            return step
        if np.isinf(best) or loss < best - np.float32(share) * abs(best):
            best, since = loss, step
    return len(losses)


def test_a_painting_stops_without_improvement(clip, tmp_path):
    free = guided.paint_many(None, clip, ["a star"], settings=[{"lr": 0.1}, {"lr": 1.0}], **FEW)
    settings = [{"lr": lr, "stop_share": share} for lr in (0.1, 1.0) for share in (0.0, 0.02, 0.5)]
    stopped = guided.paint_many(None, clip, ["a star"], settings=settings, stop_after=2, **FEW)
    expected = [stopping_step(free.losses[0, 0, index // 3], 2, x["stop_share"]) for index, x in enumerate(settings)]
    assert stopped.steps[0, 0].tolist() == expected and expected[2] == 3 and len(set(expected)) > 1
    for index, steps in enumerate(expected):
        losses, free_losses = stopped.losses[0, 0, index], free.losses[0, 0, index // 3]
        np.testing.assert_allclose(losses[: steps + 1], free_losses[: steps + 1], rtol=1e-5)
        assert (losses[steps:] == losses[steps:][:1]).all()
    # Alone, it ends early: the picture is that of so many steps, and what is left of losses and snapshots repeats.
    alone, seen = {"stop_after": 2, "stop_share": 0.5} | FEW, []
    outputs = {"state_file": tmp_path / "s.npz", "preview": lambda step, *_: seen.append(step)}
    painting = guided.paint(None, clip, "a star", **outputs, **alone)
    assert seen == [2, 4] and painting.losses.shape == (1, 10) and painting.snapshots.shape[1] == 5
    shorter = guided.paint(None, clip, "a star", **FEW | {"steps": 3})
    np.testing.assert_allclose(painting.latents, shorter.latents, atol=1e-5)
    assert painting.steps == [3] and shorter.steps == [3]
    assert stopping.describe_stops(painting.steps, 10) == "stopped after 3 of 10 steps: the loss improved no more"
    assert stopping.describe_stops(shorter.steps, 3) == ""
    again = guided.paint(None, clip, "a star", resume_from=tmp_path / "s.npz", **alone)
    np.testing.assert_array_equal(again.losses, painting.losses)
    np.testing.assert_array_equal(again.latents, painting.latents)
    with pytest.raises(ConfigError, match="stop_after beside overlay_every"):
        options.resolve({"stop_after": 2, "overlay": "a.png", "overlay_every": 3})


def test_a_painting_that_never_stops_beside_one_that_does(clip):
    settings = [{"stop_after": 0}, {"stop_after": 2}]
    painted = guided.paint_many(None, clip, ["a star"], settings=settings, lr=1e-6, **FEW)
    assert painted.steps[0, 0, 0] == 10 > painted.steps[0, 0, 1]


def test_a_painting_waits_for_what_begins_later(clip):
    """What comes at step 4 is painted, although the loss would not improve: the rate is too small for it."""
    still = FEW | {"lr": 1e-6, "steps": 12}
    prompts = ["a star", "a star | a ring:from=4", "a star:(0:1, 3:0.5) | a ring:-0.5:until=5"]
    settings = [{"stop_after": 0}, {"stop_after": 2}]
    painted = guided.paint_many(None, clip, prompts, settings=settings, stop_share=0.5, **still)
    settled = [0, 4, 5]
    expected = [[12, stopping_step(free[0], 2, 0.5, step)] for free, step in zip(painted.losses[:, 0], settled, strict=True)]
    assert painted.steps[:, 0].tolist() == expected == [[12, 3], [12, 7], [12, 8]]
    np.testing.assert_array_equal(painted.losses[1:, 0, 1, :8], painted.losses[1:, 0, 0, :8])


@pytest.mark.parametrize(
    ("prompt", "values", "expected"),
    [
        ("a", {"lr_drops": (3, 60)}, 60),
        ("a", {"lr_decay": 0.1}, 75),
        ("a:(0:1, 30:2):until=20", {}, 20),
        ("a:(0:1, 30:2):from=50 | b:from=10:until=1000", {}, 50),
        ("a", {"lr_drops": (3, 80)}, "stop_after = 20 has no effect in 100 steps, counted from step 80 on, where the"),
        ("a | b:from=79", {}, "counted from step 79 on, where the weight of 'b' changes last; set a smaller stop"),
        ("a", {"stop_after": 99}, "stop_after = 99 has no effect in 100 steps; set"),
        ("a:(0:1, 100:2)", {}, "stop_after = 20 has no effect: the weight of 'a' changes until the last step; leave one of"),
        ("a", {"prior": "runs/prior"}, "has no effect: the weight of the prior changes until the last step"),
        ("a", {"latents": "soft", "temperature_end": 0.1}, "the temperature .temperature_end. changes until the last step"),
    ],
)
def test_the_step_from_which_losses_count(prompt, values, expected):
    resolved = options.resolve({"steps": 100, "stop_after": 20} | values)
    if isinstance(expected, int):
        assert stopping.settled_step(parse_scene(prompt), resolved) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            stopping.settled_step(parse_scene(prompt), resolved)
    assert stopping.settled_step(parse_scene(prompt), options.resolve({"steps": 100})) == 0

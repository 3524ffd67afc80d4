"""A config is checked whole before anything is compiled, and says what is wrong."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax.errors import ConfigError
from train_jax.options import Options, option


def minimal(**changes):
    return ConfigDict({"task": "toy_task", "steps": 10, "data": {"source": "digits"}, **changes})


def test_defaults_are_filled_in():
    full = config_lib.resolve(minimal(optim={"lr": 1}))
    assert full.optim.lr == 1.0 and isinstance(full.optim.lr, float)
    assert full.mesh.data == -1 and full.model.width == 16
    assert config_lib.resolve(full) == full, "resolving twice changes nothing"


def test_the_users_config_is_not_changed():
    config = minimal(evals={"end": {"type": "norm"}})
    before = config.to_dict()
    config_lib.resolve(config)
    assert config.to_dict() == before


@pytest.mark.parametrize("evals, left", [(None, []), ({"end": None, "late": {"type": "norm"}}, ["late"])])
def test_evaluators_that_are_none_are_left_out(evals, left):
    full = config_lib.resolve(minimal(evals=evals))
    assert list(full.evals) == left and config_lib.resolve(full) == full


def test_a_checkpoint_and_the_user_may_say_the_same_in_lists_and_tuples():
    options = ConfigDict({"layers": (3, 4, 6, 3), "width": 64})
    config_lib.adopt(options, {"layers": [3, 4, 6, 3]}, {"layers": [3, 4, 6, 3], "width": 32}, "model", example="x")
    assert options.to_dict() == {"layers": (3, 4, 6, 3), "width": 32}
    with pytest.raises(ConfigError, match=r"layers = \(3, 4, 6, 3\), but .* has \(1, 1, 1, 1\): leave it out.*--config=x"):
        config_lib.adopt(options, {"layers": (3, 4, 6, 3)}, {"layers": [1, 1, 1, 1]}, "model", example="x")


def test_evaluators_get_the_defaults_of_their_type():
    full = config_lib.resolve(minimal(evals={"end": {"type": "norm", "every": 5}}))
    assert full.evals.end.to_dict() == {
        "type": "norm",
        "every": 5,
        "source": "",
        "split": "test",
        "where": (),
        "batch_size": 64,
        "scale": 1.0,
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optim": {"learning_rate": 1.0}}, "config.optim.learning_rate is not an option"),
        ({"stepz": 3}, r"did you mean config.steps\?"),
        ({"optim": {"lr": "fast"}}, "config.optim.lr = 'fast' is of type str; it must be of type float"),
        ({"optim": {"no_decay": ("(",)}}, "config.optim.no_decay: '\\(' is not a regular expression"),
        ({"optim": {"freeze": ("*vision",)}}, "config.optim.freeze: '\\*vision' is not a regular expression"),
        ({"optim": {"freeze": (5,)}}, r"config.optim.freeze = \(5,\); it must hold values of type str"),
        ({"optim": {"lr_scale": (("a", "0.1"),)}}, "pairs of a regular expression and a factor above 0"),
        ({"optim": {"lora": (("a", 0, 1.0),)}}, "triples of a regular expression, a rank above 0 and alpha"),
        ({"optim": {"lora": (("(", 1, 1.0),)}}, "is not a regular expression"),
        ({"steps": 2.5}, "config.steps = 2.5 is of type float; it must be of type int"),
        ({"optim": 3}, "must be a group of options"),
        ({"steps": 0}, "config.steps = 0"),
        ({"task": "no_such.task"}, "there is no module 'no_such'"),
        ({"task": "json"}, "not a task"),
        ({"task": ""}, "not a task"),
        ({"data": {}}, "config.data.source = ''"),
        ({"accumulate": 3}, "divisor of data.batch_size = 256"),
        ({"ema": {"decay": 1.0}}, r"config.ema.decay = 1.0; it must be in \[0, 1\)"),
        ({"optim": {"warmup_steps": 10}}, "config.optim.warmup_steps = 10"),
        ({"evals": {"end": {"type": "accuracy"}}}, "this task's evaluators are: norm"),
        ({"evals": {"end": {"type": "norm", "scael": 2.0}}}, "did you mean config.evals.end.scale"),
        (
            {"optim": {"players": {"generator": {"freeze": ()}}}},
            "config.optim.players.generator.freeze is not an option",
        ),
        ({"optim": {"players": {"generator": {"lr": "x"}}}}, "config.optim.players.generator.lr = 'x'"),
        ({"optim": {"players": {"generator": {"lr": -1}}}}, "config.optim.players.generator.lr = -1.0; it must be positive"),
        ({"optim": {"players": {"generator": {"clip": -1.0}}}}, "config.optim.players.generator.clip = -1.0"),
        ({"optim": {"players": {"generator": {"warmup_steps": 99}}}}, "config.optim.players.generator.warmup_steps = 99"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        config_lib.resolve(minimal(**changes))


def test_a_player_s_whole_numbers_are_fine_floats():
    full = config_lib.resolve(minimal(optim={"players": {"generator": {"clip": 1, "lr": 1}}}))
    assert isinstance(full.optim.players.generator.clip, float) and full.optim.players.generator.lr == 1.0


@dataclasses.dataclass(frozen=True)
class Grown(Options):
    added = ("late",)

    early: int = option(1, "there from the beginning")
    late: int = option(0, "added later")


def test_an_added_option_is_part_of_the_identity_only_where_it_is_set():
    """So that files that were named by older fingerprints stay valid."""
    assert Grown().identity() == {"early": 1} and Grown(late=2).identity() == {"early": 1, "late": 2}

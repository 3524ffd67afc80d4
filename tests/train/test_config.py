"""A config is checked whole before anything is compiled, and says what is wrong."""

import pytest
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax.errors import ConfigError


def minimal(**changes):
    return ConfigDict({"task": "toy_task", "steps": 10, "data": {"source": "digits"}, **changes})


def test_defaults_are_filled_in():
    full = config_lib.resolve(minimal(optim={"lr": 1}))
    assert full.optim.lr == 1.0 and isinstance(full.optim.lr, float)
    assert full.mesh.data == -1 and full.model.dtype == "float32"
    assert config_lib.resolve(full) == full, "resolving twice changes nothing"


def test_the_users_config_is_not_changed():
    config = minimal(evals={"end": {"type": "norm"}})
    before = config.to_dict()
    config_lib.resolve(config)
    assert config.to_dict() == before


def test_evaluators_get_the_defaults_of_their_type():
    full = config_lib.resolve(minimal(evals={"end": {"type": "norm", "every": 5}}))
    assert full.evals.end.to_dict() == {"type": "norm", "every": 5, "scale": 1.0}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optim": {"learning_rate": 1.0}}, "config.optim.learning_rate is not an option"),
        ({"stepz": 3}, r"did you mean config.steps\?"),
        ({"optim": {"lr": "fast"}}, "config.optim.lr = 'fast' is a str; it must be a float"),
        ({"steps": 2.5}, "config.steps = 2.5 is a float; it must be a int"),
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
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        config_lib.resolve(minimal(**changes))

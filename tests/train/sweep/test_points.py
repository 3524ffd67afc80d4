"""Points of a sweep: combinations, names, conditions, and what is refused before a run starts."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file
from train_jax.errors import ConfigError
from train_jax.sweep.points import evaluate_condition, make_points, name_points, parse_grid

CONFIG = "clip/digits"


def test_the_grid_and_seeds_are_combined_in_order():
    points = make_points(CONFIG, grid={"optim.lr": [1e-3, 3e-4], "model.loss": ["softmax", "sigmoid"]}, seeds=2)
    expected = itertools.product((1e-3, 3e-4), ("softmax", "sigmoid"), (0, 1))
    assert [(p.config.optim.lr, p.config.model.loss, p.config.seed) for p in points] == list(expected)
    assert points[0].name == "lr=0.001,loss=softmax,seed=0" and len({point.name for point in points}) == 8


def test_seeds_start_at_that_of_the_config():
    assert [p.config.seed for p in make_points(CONFIG, overrides=["--config.seed=7"], seeds=3)] == [7, 8, 9]


def test_a_config_file_yields_its_points_and_the_grid_extends_them(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'task': 'clip_jax.task', 'steps': 2, 'data': {'source': 'digits'}})\n"
        "def sweep():\n    for lr in (1e-3, 1e-4):\n        yield {'optim.lr': lr, 'steps': round(1 / lr)}\n"
    )
    points = make_points(str(file), grid={"model.loss": ["softmax", "sigmoid"]})
    assert [(p.config.steps, p.config.model.loss) for p in points] == [
        (1000, "softmax"), (1000, "sigmoid"), (10000, "softmax"), (10000, "sigmoid"),
    ]  # fmt: skip
    assert points[0].name == "lr=0.001,steps=1000,loss=softmax"
    file.write_text(file.read_text().replace("yield {'optim.lr': lr", "yield {'optim.rate': lr"))
    with pytest.raises(ConfigError, match=r"optim\.rate"):
        make_points(str(file))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("optim.lr=1e-3,3e-4", [1e-3, 3e-4]),
        ("model.loss=softmax,sigmoid", ["softmax", "sigmoid"]),
        ("model.image.widths=(1,2),(3,4)", [(1, 2), (3, 4)]),
        ("optim.args={'b2': 0.9, 'b1': 0.8},{}", [{"b2": 0.9, "b1": 0.8}, {}]),
        ("compute.scan=true,false", [True, False]),
    ],
)
def test_values_of_a_grid_are_read_as_overrides_are(words, values):
    name = words.partition("=")[0]
    assert parse_grid([words], config_file.load(CONFIG)) == {name: values}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr"], "is written NAME=VALUE"),
        (["optim.lr=1,2", "optim.lr=3"], "occurs twice"),
        (["optim.lr=1e-3,0.001"], "a value occurs twice"),
    ],
)
def test_malformed_grids_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_grid(words, config_file.load(CONFIG))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"optim.lrr": [1e-3]}}, r"optim\.lrr.*at the point optim\.lrr=0\.001"),
        ({"grid": {"optim.lr": [1e-3, -1.0]}}, r"optim\.lr.*at the point optim\.lr=-1\.0"),
        ({"grid": {"optim.name": ["adamw", "adan2"]}}, "not an optimiser"),
        ({"grid": {"seed": [1, 2]}, "seeds": 2}, "both set the seed"),
        ({"seeds": 0}, "at least 1"),
        ({"where": "optim.lr > 1"}, "leaves none of 1 points"),
        ({"where": "optim.rate > 1"}, r"no option 'optim\.rate'"),
        ({"where": "model.loss == sigmoid"}, "strings are quoted"),
        ({"where": "__import__('os')"}, "not a comparison"),
        ({"where": "optim.lr >"}, "invalid syntax"),
        ({"where": "optim.lr is 1"}, "not a comparison"),
        ({"grid": {"data.source": ["folder:" + 130 * "x"]}}, "longer than"),
    ],
)
def test_wrong_points_are_refused_before_any_run(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_points(CONFIG, **arguments)


@pytest.mark.parametrize(
    "text",
    [
        "optim.lr > 1e-3", "not (optim.lr > 1e-3 and model.loss == 'sigmoid')", "1e-4 < optim.lr <= 2e-3",
        "model.loss in ('softmax', 'other')", "model.loss not in ['softmax']", "steps / 2 == 200 or -seed < 0",
        "data.batch_size * steps >= 51200", "seed % 2 == 1", " seed == 0 ",
    ],
)  # fmt: skip
def test_conditions_agree_with_python(text):
    config = config_lib.resolve(config_file.load(CONFIG))
    assert evaluate_condition(text, config) is bool(eval(text.strip(), {}, dict(config.items())))


def test_a_condition_leaves_out_points_that_no_run_could_have():
    grid = {"optim.lr": [1e-3, -1.0]}
    assert [point.name for point in make_points(CONFIG, grid=grid, where="optim.lr > 0")] == ["lr=0.001"]


def test_names_are_the_shortest_that_differ_and_safe_for_files():
    points = [{"model.image.width": 1, "model.text.width": 2, "data.source": "folder:/a b/*.png"}]
    assert name_points(points) == ["image.width=1,text.width=2,source=folder-a b-.png".replace("a b", "ab")]
    with pytest.raises(ConfigError, match="2 points have the name lr=1"):
        name_points([{"lr": 1}, {"lr": 1}])


def test_the_words_of_a_point_give_its_config():
    values = {"optim.lr": 3e-4, "model.loss": "sigmoid", "optim.args": {"b2": 0.9}, "augment.scale": (0.5, 1.0)}
    values["evals"] = None
    base = config_file.load(CONFIG)
    words = config_file.as_words(values)
    assert config_file.override(base, words).to_dict() == config_file.set_options(base, values).to_dict()
    assert isinstance(base, ConfigDict)


def test_numbers_of_numpy_are_numbers():
    scale = tuple(np.linspace(0.5, 1, 2))
    point, *_ = make_points(CONFIG, grid={"optim.lr": list(np.logspace(-3, -2, 2)), "augment.scale": [scale]})
    assert point.name == "lr=0.001,scale=(0.5,1.0)"
    words = config_file.as_words(point.options)
    assert config_file.override(config_file.load(CONFIG), words).to_dict() == point.config.to_dict()

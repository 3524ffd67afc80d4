"""The second stage of images of a class: trained on cached codes, loaded, sampled from by the command line.

How it samples, scores and completes pictures, its losses and evaluators: tests/vqgan/stage2.
"""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import train_jax
import vqgan_jax
from tests import hub_server, model_cards
from train_jax import config as config_lib
from train_jax.data import sources
from train_jax.data.errors import BrokenSample, DataError
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import cli
from vqgan_jax import codes as codes_lib
from vqgan_jax.guided import prior as painting_prior
from vqgan_jax.prior import task as task_lib
from vqgan_jax.prior.options import PriorOptions

RNG = np.random.default_rng(0)


def prior_config(tiny) -> ConfigDict:
    c = ConfigDict({"task": "vqgan_jax.prior.task", "steps": 3, "log_every": 1})
    c.data = tiny[0].data.to_dict()
    c.vqgan = {"path": str(tiny[1])}
    c.codes = {"flip": True}
    c.model = {"classes": 80, "width": 16, "depth": 1, "heads": 2}
    c.optim = {"lr": 1e-2}
    c.evals = {
        "test": {"type": "likelihood", "batch_size": 16},
        "look": {"type": "samples", "rows": 3, "n": 2, "top_p": 0.9},
    }
    return c


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    config, folder = prior_config(tiny), tmp_path_factory.mktemp("prior") / "run"
    train_jax.run(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def prior(run):
    return vqgan_jax.load_prior(run[1])


def test_a_run_reports_bits_and_shows_samples(run):
    history = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "bits_per_code", "accuracy"} <= history[0].keys()
    assert history[0]["bits_per_code"] == pytest.approx(history[0]["loss"] / np.log(2), rel=1e-5)
    assert history[0]["bits_per_code"] == pytest.approx(4, abs=0.2), "16 codes, at the start of training"
    assert history[-1]["test/images"] == 24 and history[-1]["test/bits_per_code"] < 4.2
    assert list((run[1] / "samples").glob("*samples*"))


def test_codes_are_computed_once_and_are_those_of_the_pictures(run, trained, monkeypatch):
    source = sources.open_source("shapes/32", "test", data_dir=run[0].data.data_dir)
    monkeypatch.setattr(type(trained), "encode", None)  # the codes exist already
    coded = codes_lib.with_codes(trained, source, run[1] / "codes", flip=True)
    monkeypatch.undo()
    assert len(coded) == 24 and "image" not in coded[0] and coded[0]["captions"] == source[0]["captions"]
    pictures = trained.preprocess([Image.open(io.BytesIO(record["image"])) for record in source])
    np.testing.assert_array_equal([r["codes"][0] for r in coded], trained.encode(pictures))
    np.testing.assert_array_equal(
        [r["codes"][1] for r in coded], trained.encode(np.ascontiguousarray(pictures[:, :, ::-1]))
    )


def test_paintings_take_a_run_as_their_prior(run, trained, tmp_path):
    """What the term is: tests/vqgan/guided/test_prior.py."""
    loaded = painting_prior.load(str(run[1]), trained, (16, 16))
    generator = vqgan_jax.load_prior(run[1])
    assert loaded.fingerprint == generator.fingerprint and loaded.module.grid == (8, 8)
    with pytest.raises(ConfigError, match="size = 32 x 16: the prior models pictures of 16 x 16 pixels: set --size 16x16"):
        painting_prior.load(str(run[1]), trained, (32, 16))
    with pytest.raises(ConfigError, match="not the VQGAN that paints: paint with .* --vqgan"):
        painting_prior.load(str(run[1]), dataclasses.replace(trained, fingerprint="of another"), (16, 16))
    shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((run[1] / "config.json").read_text()) | {"condition_dropout": 0.0}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="without a condition; train it with --config.condition_dropout"):
        painting_prior.load(str(tmp_path / "run"), trained, (16, 16))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ConfigError, match=r"prior = .*run"):
        painting_prior.load(str(tmp_path / "run"), trained, (16, 16))


def test_codes_of_pictures_that_changed_are_refused(run, trained, tmp_path):
    source = sources.open_source("shapes/32", "test", data_dir=run[0].data.data_dir)
    shutil.copytree(run[1] / "codes", tmp_path / "codes")
    changed = [dict(record) for record in source]
    changed[7]["image"] = changed[8]["image"]
    with pytest.raises(DataError, match=r"is stale: record 7 of shapes/32:test .* Remove"):
        codes_lib.with_codes(trained, sources.Source(source.name, changed), tmp_path / "codes", flip=True)
    # Other transforms, another tokenizer: other files.
    codes_lib.with_codes(trained, source, tmp_path / "codes", flip=False)
    assert len(list((tmp_path / "codes").glob("codes-*.json"))) == 3


def test_an_image_that_cannot_be_read_has_no_codes(trained, tmp_path):
    records = [{"image": random_png(), "id": "a"}, {"image": b"none", "id": "b"}]
    coded = codes_lib.with_codes(trained, sources.Source("two", records), tmp_path)
    assert coded[0]["codes"].shape == (1, 8, 8)
    with pytest.raises(BrokenSample, match="b: the image could not be read"):
        coded[1]
    with pytest.raises(DataError, match="none of its 1 images"):
        codes_lib.with_codes(trained, sources.Source("one", records[1:]), tmp_path)


def random_png() -> bytes:
    from train_jax.datasets.shapes.render import png

    return png(RNG.integers(0, 256, (16, 16, 3), np.uint8))


def test_classes_are_those_of_the_run(prior):
    assert isinstance(prior, vqgan_jax.Prior) and prior.classes == 80 and prior.grid == (8, 8) and prior.size == 16
    drawing = prior.draw([5, None], 2, progress=False)
    assert drawing.images.shape == (2, 2, 16, 16, 3)
    assert prior.score([5, None], drawing.images[0]).shape == (2, 2)
    with pytest.raises(ValueError, match="label 80: this model has labels 0 to 79"):
        prior.generate([80])


def test_a_run_keeps_its_vqgan(run, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run[1], moved)
    prior = vqgan_jax.load_prior(moved)
    assert prior.vqgan.fingerprint == trained.fingerprint
    np.testing.assert_array_equal(
        prior.vqgan.encode(np.zeros((1, 16, 16, 3), np.uint8)), trained.encode(np.zeros((1, 16, 16, 3), np.uint8))
    )
    (moved / "vqgan.safetensors").write_bytes(b"x")
    with pytest.raises(LoadError, match="wrong vqgan.safetensors for the weights"):
        vqgan_jax.load_prior(moved)


def test_guidance_is_refused_to_a_run_that_dropped_no_labels(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"condition_dropout": 0.0}))
    prior = vqgan_jax.load_prior(tmp_path / "run")
    with pytest.raises(ValueError, match="guidance = 2: .* train with condition_dropout above 0"):
        prior.draw([3], guidance=2)
    with pytest.raises(ValueError, match="was not trained without labels"):
        prior.draw()


@pytest.mark.parametrize("classes, dropout, droppable", [(80, 0.1, True), (80, 0.0, False), (0, 0.0, True)])
def test_labels_are_droppable_if_training_drops_them_or_there_are_none(classes, dropout, droppable):
    condition = PriorOptions(classes=classes).condition(dropout)
    assert condition.classes == classes and condition.droppable == droppable


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optim": {"freeze": ("nothing",)}}, "nothing"),
        ({"ema": {"players": ("prior",)}}, "config.ema.players names .*prior.* this task's players are .*generator"),
    ],
)
def test_mistakes_of_training_are_found_before_codes_are_computed(tiny, change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_jax.run(ConfigDict(prior_config(tiny).to_dict() | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"vqgan": 3}, {"condition_dropout": "none"}, {"model": 3}])
def test_a_run_with_a_wrong_config_is_named(run, tmp_path, change):
    shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(LoadError, match="describes no model that can be built"):
        vqgan_jax.load_prior(tmp_path / "run")


def test_runs_of_other_tasks_are_no_priors(tiny, tmp_path):
    with pytest.raises(LoadError, match="is a run of 'vqgan_jax.task'"):
        vqgan_jax.load_prior(tiny[1])
    with pytest.raises(LoadError, match="no run directory"):
        vqgan_jax.load_prior(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vqgan.path": ""}, "config.vqgan.path is empty"),
        ({"model.classes": -1}, "config.model.classes = -1; it must be 0 or more"),
    ],
)
def test_wrong_options_are_named(tiny, change, message):
    config = prior_config(tiny)
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        task_lib.make(config_lib.resolve(config), None)


def test_the_command_line_draws_what_the_model_draws(run, prior, tmp_path, capsys):
    out = tmp_path / "grid.png"
    arguments = ["sample", "--model", str(run[1]), "--out", str(out), "--n", "3", "--columns", "2", "--class", "5"]
    assert cli.main([*arguments, "--seed", "4", "--top-p", "0.9", "--guidance", "2"]) == 0
    pictures = prior.generate([5], 3, seed=4, top_p=0.9, guidance=2.0)[0]
    with Image.open(out) as image:
        grid = np.asarray(image)[::8, ::8]  # 16 pixels are shown as 128
    assert grid.shape == (34, 34, 3)
    np.testing.assert_array_equal(grid[:16, 18:], pictures[1])
    capsys.readouterr()
    assert cli.main([*arguments, "--top-k", "99"]) == 2
    assert "top_k = 99 must be in [1, 16]" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, "--size", "9"])
    assert "write height and width" in capsys.readouterr().err
    assert cli.main(["sample", "--model", str(tmp_path), "--out", str(out)]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_samples_in_a_folder_are_those_of_the_grid_and_are_drawn_once(run, prior, tmp_path, capsys):
    folder, options = tmp_path / "many", ["--class", "5", "--seed", "4", "--guidance", "2"]
    arguments = ["sample", "--model", str(run[1]), "--folder", str(folder), "--n", "5", "--batch-size", "2", *options]
    assert cli.main(arguments) == 0
    (folder / "000001.png").unlink()
    (folder / "000004.png").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert cli.main([*arguments, "--out", str(tmp_path / "grid.png")]) == 0
    assert times.items() <= {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}.items()
    pictures = prior.generate([5], 5, seed=4, guidance=2.0)[0]
    for index, picture in enumerate(pictures.astype(int)):  # in a batch of another size a shade may round otherwise
        np.testing.assert_allclose(np.asarray(Image.open(folder / f"{index:06d}.png")), picture, atol=1)
    assert (tmp_path / "grid.png").is_file()
    capsys.readouterr()
    assert cli.main([*arguments, "--top-p", "0.5"]) == 2
    assert "000000.png was written by another command" in capsys.readouterr().err
    assert cli.main(["sample", "--model", str(run[1])]) == 2
    assert "name --out FILE for the grid, or --folder FOLDER" in capsys.readouterr().err


def test_a_pushed_prior_is_opened_by_the_code_of_its_card(run, prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hub_server.serve(monkeypatch) as hub:
        opened = model_cards.push_and_open(run[1], hub, tmp_path / "run", "vqgan_jax")
        assert opened["prior"].fingerprint == prior.fingerprint

"""The demo on a tiny run: its files, the marks of its hits, and a second call."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from clip_jax import demo
from clip_jax.search import Index, search
from train_jax.data.sources import open_source
from train_jax.datasets import shapes
from train_jax.datasets.shapes import demo as shown
from train_jax.datasets.shapes import oracle, render, scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """`(working directory, metrics)` of the demo, whose run is the finished tiny run."""
    workdir = tmp_path_factory.mktemp("demo")
    shutil.copytree(tiny[1], workdir / "clip")
    with mock.patch.object(shown, "SEARCHED", {"test": 40, "novel": 16}):
        yield workdir, demo.run(shown, tiny[0], workdir)


def test_the_demo_writes_its_images_and_page(done, tiny):
    workdir, results = done
    logged = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    assert results == {"test/top1": [row["test/top1"] for row in logged if "test/top1" in row][-1]}
    for name in ("search.png", "classify.png"):
        with Image.open(workdir / name) as picture:
            assert picture.width > 800 and np.asarray(picture.convert("RGB")).std() > 10, name
    page = (workdir / "index.html").read_text("utf-8")
    assert all(query in page for query in shown.QUERIES)
    assert page.count('src="data:image/') == 1 + len(shown.QUERIES) * demo.HITS
    assert f"{100 * results['test/top1']:.1f} %" in page


def test_the_folder_holds_held_out_and_planted_pictures(done, tiny):
    workdir, _ = done
    truth = demo.write_images(shown.make_images(tiny[0].data), workdir / "images")
    files = {path.name for path in (workdir / "images").iterdir()}
    assert files == set(truth) and len(files) == 40 + 16 + 3
    for record in open_source("shapes/32", "test", data_dir=tiny[0].data.data_dir):
        assert truth[f"{record['id']}.png"]["scene"] == record["scene"]
    with Image.open(workdir / "images" / "novel-00003.png") as picture:
        assert picture.size == (128, 128)
    for index in range(3):
        assert shapes.is_true(shown.PLANTED_QUERY, truth[f"hidden-{index}.png"])


def test_planted_pictures_show_the_planted_query():
    """Read by the oracle, at the image size that it is made for."""
    for index in range(3):
        rng = np.random.default_rng(index)
        planted = shown.sample_planted_scene(rng, "plain")
        objects = oracle.read(render.render(planted, 64, rng))
        assert scene.is_true(shown.PLANTED_QUERY, scene.Scene(tuple(objects)))


@pytest.mark.parametrize("query, colour, shape", [("something red", "red", None), ("a green heart", "green", "heart")])
def test_hits_are_marked_as_correct_or_wrong(done, tiny, trained, query, colour, shape):
    workdir, _ = done
    truth, index = demo.write_images(shown.make_images(tiny[0].data), workdir / "images"), Index.open(workdir / "index")

    def is_right(record):
        objects = scene.Scene.from_json(record["scene"]).objects
        return any(o.colour == colour and shape in (None, o.shape) for o in objects)

    hits = search(index, trained, text=query, k=demo.HITS)
    num_relevant = sum(map(is_right, truth.values()))
    correct = [is_right(truth[hit.path.name]) for hit in hits]
    expected = [True if true else False if rank < num_relevant else None for rank, true in enumerate(correct)]
    section = demo.make_search_section(trained, index, truth, shapes.is_true, query)
    assert [cell.picture for cell in section.cells] == [hit.path for hit in hits]
    assert [cell.correct for cell in section.cells] == expected
    assert section.title == f"“{query}”   {expected.count(True)} of {min(num_relevant, demo.HITS)} found"


def test_a_second_call_reuses_the_files(done, tiny):
    workdir, results = done
    before = {path: path.stat().st_mtime_ns for path in (workdir / "images").iterdir()}
    assert demo.run(shown, tiny[0], workdir) == results
    assert {path: path.stat().st_mtime_ns for path in (workdir / "images").iterdir()} == before
    meta = json.loads((workdir / "index" / "meta.json").read_text())
    assert meta["complete"]
    (workdir / "index" / "meta.json").write_text(json.dumps(meta | {"fingerprint": "of other weights"}))
    demo.run(shown, tiny[0], workdir)
    assert Index.open(workdir / "index").fingerprint == meta["fingerprint"], "new weights, new index"


_BAD_CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"task": "clip_jax.task", "stepz": 3})
"""


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "config.py").write_text(_BAD_CONFIG)
    code = demo.main(["--workdir", str(tmp_path / "demo"), "--config", str(tmp_path / "config.py")])
    assert code == 2 and "config.stepz is not an option" in capsys.readouterr().err
    assert demo.main(["--config", str(tmp_path / "nowhere.py")]) == 2
    assert "nowhere.py" in capsys.readouterr().err

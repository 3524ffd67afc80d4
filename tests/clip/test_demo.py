"""The demo on a tiny run: it leaves its pictures, tells the truth about hits, and takes up what is there."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from clip_jax import demo
from clip_jax.search import Index, search
from train_jax.data.sources import open_source
from train_jax.datasets.shapes import oracle, scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """`(working directory, results)` after the demo; its run is the tiny one, finished already."""
    workdir = tmp_path_factory.mktemp("demo")
    shutil.copytree(tiny[1], workdir / "clip")
    with mock.patch.object(demo, "PICTURES", {"test": 40, "novel": 16}):
        yield workdir, demo.run(tiny[0], workdir)


def test_it_leaves_what_it_promises(done, tiny):
    workdir, results = done
    logged = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    assert results == {"test/top1": [row["test/top1"] for row in logged if "test/top1" in row][-1]}
    for name in ("search.png", "classify.png"):
        with Image.open(workdir / name) as picture:
            assert picture.width > 800 and np.asarray(picture.convert("RGB")).std() > 10, name
    page = (workdir / "index.html").read_text("utf-8")
    assert all(query in page for query in demo.QUERIES)
    assert page.count('src="data:image/') == 1 + len(demo.QUERIES) * demo.HITS
    assert f"{100 * results['test/top1']:.1f} %" in page


def test_the_folder_holds_unseen_pictures_and_those_hidden_for_the_longest_query(done, tiny):
    workdir, _ = done
    truth = demo.export(workdir / "images")
    files = {path.name for path in (workdir / "images").iterdir()}
    assert files == set(truth) and len(files) == 40 + 16 + 3
    for record in open_source("shapes/32", "test", data_dir=tiny[0].data.data_dir):
        assert truth[f"{record['id']}.png"].to_json() == record["scene"]
    with Image.open(workdir / "images" / "novel-00003.png") as picture:
        assert picture.size == (128, 128)
    for number in range(3):
        hidden = truth[f"hidden-{number}.png"]
        assert scene.is_true(demo.PLANTED_QUERY, hidden)


def test_hidden_pictures_show_what_is_said_of_them():
    """The oracle reads them back, at a size that it is made for."""
    for number in range(3):
        rng = np.random.default_rng(number)
        wanted = demo._planted_scene(rng, "plain")
        found = oracle.read(demo.render(wanted, 64, rng))
        assert scene.is_true(demo.PLANTED_QUERY, scene.Scene(tuple(found)))


@pytest.mark.parametrize("query, colour, shape", [("something red", "red", None), ("a green heart", "green", "heart")])
def test_marks_are_the_truth(done, tiny, trained, query, colour, shape):
    workdir, _ = done
    truth, index = demo.export(workdir / "images"), Index.open(workdir / "index")

    def is_right(shown):
        return any(o.colour == colour and shape in (None, o.shape) for o in shown.objects)

    hits = search(index, trained, text=query, k=demo.HITS)
    possible = sum(map(is_right, truth.values()))
    wanted = [True if is_right(truth[hit.path.name]) else False if n < possible else None for n, hit in enumerate(hits)]
    section = demo.search_section(trained, index, truth, query)
    assert [cell.picture for cell in section.cells] == [hit.path for hit in hits]
    assert [cell.correct for cell in section.cells] == wanted
    assert section.title == f"“{query}”   {wanted.count(True)} of {min(possible, demo.HITS)} found"


def test_a_second_call_takes_up_what_is_there(done, tiny):
    workdir, results = done
    before = {path: path.stat().st_mtime_ns for path in (workdir / "images").iterdir()}
    assert demo.run(tiny[0], workdir) == results
    assert {path: path.stat().st_mtime_ns for path in (workdir / "images").iterdir()} == before
    meta = json.loads((workdir / "index" / "meta.json").read_text())
    assert meta["complete"]
    (workdir / "index" / "meta.json").write_text(json.dumps(meta | {"fingerprint": "of other weights"}))
    demo.run(tiny[0], workdir)
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

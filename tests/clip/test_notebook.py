"""The notebook runs from top to bottom, on a tiny run, and shows what it promises."""

import base64
import io
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "clip.ipynb"


@pytest.fixture(scope="module")
def executed(tiny):
    """The notebook after every cell has run, in the folder where it lies."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    env = os.environ | {"CLIP_RUN": str(tiny[1]), "PYTHONPATH": str(ROOT)}
    env.pop("CLIP_PETS", None)
    env.pop("MPLBACKEND", None)  # the notebook's own: figures become outputs
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}}
    )
    client.execute(env=env)
    return notebook


def outputs(notebook, word):
    """The text and the pictures that the cell whose code holds `word` gave."""
    cell = next(c for c in notebook.cells if c.cell_type == "code" and word in c.source)
    text = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(o.data["image/png"]))).convert("RGB")
        for o in cell.outputs
        if o.output_type == "display_data" and "image/png" in o.data
    ]
    return text, pictures


def test_it_loads_the_run_it_is_pointed_at(executed, tiny, trained):
    text, _ = outputs(executed, "clip_jax.load")
    assert f"{tiny[1]} (step 3)" in text and trained.fingerprint[:16] in text


@pytest.mark.parametrize(
    "word, count",
    [("show(pictures[:8]", 1), ("right.barh", 1), ("for sentence in", 3), ("inset_axes", 1), ("records_novel[:8]", 1)],
)
def test_it_shows_charts_and_grids(executed, word, count):
    _, pictures = outputs(executed, word)
    assert len(pictures) == count
    for picture in pictures:
        assert picture.width > 200 and np.asarray(picture).std() > 5, "not blank"


def test_its_numbers_are_those_of_the_model(executed, trained):
    text, _ = outputs(executed, "true_labels")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert len(shares) == 4 and all(0 <= share <= 100 for share in shares)
    text, _ = outputs(executed, '"scale"')
    scale = np.exp(float(trained.variables["params"]["logit_scale"]))
    assert float(text.split()[-1]) == pytest.approx(scale, abs=0.01)


def test_nothing_is_downloaded_unless_asked_for(executed):
    text, _ = outputs(executed, "CLIP_PETS")
    assert text == "set CLIP_PETS=1 to grade the model on Oxford-IIIT Pets\n"


def test_the_committed_notebook_is_small_and_shows_results():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 600_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    written = [o for cell in code for o in cell.outputs]
    assert not [o for o in written if o.output_type == "error" or o.get("name") == "stderr"]
    text = "".join(o.get("text", "") for o in written)
    assert "../runs/demo/clip (step" in text
    assert not re.search(r"(?<![\w.])/\w+/\w+", text), "no path of the machine that ran it"

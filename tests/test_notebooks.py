"""Notebooks as they are committed: run once, from top to bottom, and small."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
SWEEPS = [path for path in NOTEBOOKS if path.stem.startswith(("ablation", "scaling"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_shows_results(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 600_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    written = [o for cell in code for o in cell.outputs]
    assert not [o for o in written if o.output_type == "error" or o.get("name") == "stderr"]
    text = "".join(o.get("text", "") for o in written)
    assert not re.search(r"(?<![\w.])/\w+/\w+", text), "no path of the machine that ran it"
    if path not in SWEEPS:
        assert re.search(r"\.\./runs/(demo/|emoji/|unclip-)", text) and "(step" in text


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_committed_sweep_ends_with_what_its_runs_have_shown(path):
    notebook = nbformat.read(path, as_version=4)
    *_, computed, conclusion = notebook.cells
    sentences = "".join(o.text for o in computed.outputs if o.output_type == "stream").splitlines()
    assert sentences and all(sentence in conclusion.source.replace("\n", " ").replace(" > ", " ") for sentence in sentences)
    code = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "FAST" in code and "with 3 seeds" in sentences[0], "of the full run"

"""docs/formats.md has a row of every golden of a public format, as `tests.formats` writes it; measured by that command."""

import re

from tests import formats

LINES = [line for line in formats.FILE.read_text("utf-8").splitlines() if line.startswith("| ")]
CELLS = [line.strip("| ").split(" | ") for line in LINES[2:]]


def test_every_golden_has_a_row():
    assert sorted({row.folder for row in formats.FORMATS}) == formats.goldens()
    assert all(row.path.exists() for row in formats.FORMATS)


def test_the_page_is_generated_from_these_rows():
    assert formats.FILE.read_text("utf-8").startswith(formats.HEAD)
    assert [(*cells[:4], cells[-1]) for cells in CELLS] == [formats.static_cells(row) for row in formats.FORMATS]


def test_differences_on_the_page_are_those_of_rounding():
    """Logits of CLIP are cosines times about 12; whole numbers are codes that differ."""
    for cells in CELLS:
        for name, value in re.findall(r"([a-z ]+) ([\d.e+-]+)(?:,|$)", cells[4]):
            assert float(value) <= (0 if name == "codes" else 1e-4), cells
        assert cells[5] in ("yes", "no")

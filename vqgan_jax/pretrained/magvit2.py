"""Names of Open-MAGVIT2's layers, which differ from taming's."""

import dataclasses
import re
from collections.abc import Sequence

from train_jax.weights.layout import Entry

_NAMES = {
    r"\.mid\.block_(\d+)": lambda match: f".mid_block.{int(match[1]) - 1}",
    r"\.up\.(\d+)\.norm\.": lambda match: f".adaptive.{match[1]}.",
    r"\.downsample\.conv": lambda _: ".downsample",
    r"\.upsample\.conv": lambda _: ".upsample.conv1",
}


def rename(table: Sequence[Entry]) -> list[Entry]:
    """Replaces taming's names in a weight table by Open-MAGVIT2's."""

    def convert(name: str) -> str:
        for pattern, replace in _NAMES.items():
            name = re.sub(pattern, replace, name)
        return name

    return [dataclasses.replace(entry, theirs=tuple(map(convert, entry.theirs))) for entry in table]

"""Options of DALL-E's transformer."""

import dataclasses

from train_jax.options import option
from vqgan_jax.stage2.model import CodeTransformerOptions


@dataclasses.dataclass(frozen=True)
class DALLEOptions(CodeTransformerOptions):
    """Options of the transformer and its text (arXiv 2102.12092, section 2.2)."""

    positions: str = option(
        "axial",
        "of codes: the sum of its row's and its column's vector, or (learned) one vector per position",
        choices=("axial", "learned"),
    )
    text_length: int = option(64, "tokens of a caption, begin, end and pads included", least=2)

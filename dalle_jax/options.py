"""Model options of DALL-E."""

import dataclasses

from train_jax.options import option
from vqgan_jax.stage2.model import CodeTransformerOptions


@dataclasses.dataclass(frozen=True)
class DALLEOptions(CodeTransformerOptions):
    """Options of the transformer over text tokens and codes (arXiv 2102.12092, section 2.2)."""

    positions: str = option(
        "axial",
        "position embedding of codes: sum of a row and a column vector (axial), or one vector per position (learned); or "
        "rotations of queries and keys (rotary)",
        choices=("axial", "learned", "rotary"),
    )
    text_length: int = option(64, "number of tokens per caption, including begin, end and padding", least=2)

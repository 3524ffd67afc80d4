"""What model cards tell of a DALL-E and the parts of an unCLIP: their kinds, and code that loads them in each format."""

from train_jax.model_card import FOLDER, Kind

_IMAGINE = 'unclip.imagine(["a red circle"], n=4)  # uint8 [1, 4, H, W, 3]\n'

DALLE = Kind(
    "A DALL-E, which draws images of a text by a transformer over its tokens and the codes of a VQGAN (arXiv 2102.12092)",
    tags=("dalle",),
    pipeline="text-to-image",
    code=f"""\
import dalle_jax

dalle = dalle_jax.load("{FOLDER}")
dalle.generate(["a red circle"], n=4)  # uint8 [1, 4, H, W, 3]
""",
)
UNCLIP = Kind(
    "An unCLIP, which draws images of a text through embeddings of CLIP (arXiv 2204.06125)",
    tags=("unclip",),
    pipeline="text-to-image",
    code=f"""\
import dalle_jax

unclip = dalle_jax.load_unclip("{FOLDER}")
{_IMAGINE}""",
)
PRIOR = Kind(
    "A prior of unCLIP, which samples embeddings of images of a text (arXiv 2204.06125, section 2.2)",
    tags=("unclip",),
    code=f"""\
import dalle_jax

unclip = dalle_jax.load_unclip("path/to/a/decoder", prior="{FOLDER}")
{_IMAGINE}""",
)
UPSAMPLER = Kind(
    "An upsampler of unCLIP, which enlarges images by diffusion (arXiv 2204.06125, section 2.1)",
    tags=("unclip",),
    code=f"""\
import dalle_jax

unclip = dalle_jax.load_unclip("path/to/a/decoder", upsampler="{FOLDER}")
{_IMAGINE}""",
)
DIFFUSERS = f"""\
from diffusers import UnCLIPPipeline

pipeline = UnCLIPPipeline.from_pretrained("{FOLDER}")
"""

"""What model cards tell of a VQGAN and its second stage: their kinds, and code that loads them in each format."""

from train_jax.model_card import FOLDER, Kind

VQGAN = Kind(
    "A VQGAN, which encodes images to a grid of codes and decodes codes to images (arXiv 2012.09841)",
    tags=("vqgan",),
    code=f"""\
import vqgan_jax

vq = vqgan_jax.load("{FOLDER}")
codes = vq.encode(["photo.png"])  # int32 [1, h, w]
vq.decode(codes)  # float32 [1, H, W, 3] in [0, 1]
""",
)
PRIOR = Kind(
    "A transformer over the codes of a VQGAN, which samples images (arXiv 2012.09841, section 3.2)",
    tags=("vqgan",),
    pipeline="unconditional-image-generation",
    code=f"""\
import vqgan_jax

prior = vqgan_jax.load_prior("{FOLDER}")
prior.generate([0] if prior.classes else None, n=4)  # uint8 [1, 4, H, W, 3]
""",
)
DIFFUSERS = f"""\
from diffusers import VQModel

model = VQModel.from_pretrained("{FOLDER}")
"""

"""What model cards tell of a CLIP: its kind, and code that loads it in each format."""

from train_jax.model_card import FOLDER, Kind

CLIP = Kind(
    "A CLIP, which embeds images and texts in one space (arXiv 2103.00020)",
    tags=("clip",),
    pipeline="zero-shot-image-classification",
    code=f"""\
import clip_jax

clip = clip_jax.load("{FOLDER}")
clip.classify(["photo.png"], ["a red circle", "a blue star"])  # probabilities [1, 2]
""",
)
TRANSFORMERS = f"""\
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{FOLDER}")
processor = AutoImageProcessor.from_pretrained("{FOLDER}")
tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")
"""
OPEN_CLIP = f"""\
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:{FOLDER}")
tokenizer = open_clip.get_tokenizer("local-dir:{FOLDER}")
"""

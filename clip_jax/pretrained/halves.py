"""CLIPs in two halves, as pipelines of diffusers have them: a folder with a text tower and an image tower of transformers.

Files: text_encoder/ (CLIPTextModelWithProjection), tokenizer/, image_encoder/ (CLIPVisionModelWithProjection), and
feature_extractor/ or image_processor/; such as karlo's image variations and Kandinsky's priors.

Halves do not have the scale of the logits. It is 100 here, the largest of CLIP's training, which the published models reach.
"""

import math
from pathlib import Path

import numpy as np

from clip_jax.model import MAX_SCALE
from clip_jax.pretrained import hugging_face
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.image_processor import open_preprocess
from clip_jax.pretrained.json_files import read_json
from train_jax.errors import LoadError
from train_jax.weights.layout import from_peer

TEXT, IMAGE, TOKENIZER = "text_encoder", "image_encoder", "tokenizer"
_PROCESSORS = ("feature_extractor", "image_processor")
_CLASSES = {"text": "CLIPTextModelWithProjection", "vision": "CLIPVisionModelWithProjection"}
_SCALE = "logit_scale"


def open_directory(path: Path) -> Checkpoint | None:
    """Opens a folder with both halves. Returns None if one of their folders is not there.

    Raises LoadError for other classes, for embeddings of different sizes, and if files are missing.
    """
    text, image = (path / half for half in (TEXT, IMAGE))
    if not (text.is_dir() and image.is_dir()):
        return None
    configs = {"text_config": read_config(text, "text"), "vision_config": read_config(image, "vision")}
    dims = [config.get("projection_dim", 512) for config in configs.values()]
    if len(set(dims)) > 1:
        raise LoadError(f"{path}: projection_dim is {dims[0]} in {TEXT}/ and {dims[1]} in {IMAGE}/: they are of two CLIPs")
    file = path / IMAGE / "config.json"
    model = hugging_face.convert_clip_options({"model_type": "clip", "projection_dim": dims[0], **configs}, file)
    preprocesses = (open_preprocess(path / name, model["image"]["size"]) for name in _PROCESSORS)
    preprocess = next((x for x in preprocesses if x is not None), None)
    if preprocess is None:
        raise LoadError(f"{path}: {' or '.join(_PROCESSORS)} is missing, which says how images are preprocessed")
    tensors = hugging_face.open_weights(text) | hugging_face.open_weights(image)
    table = [entry for entry in hugging_face.list_clip_entries(model) if entry.ours != _SCALE]

    def read() -> tuple[dict, str]:
        arrays = from_peer(tensors, table, str(path), hugging_face.IGNORED)
        return arrays | {_SCALE: np.asarray(math.log(MAX_SCALE), np.float32)}, str(path)

    return Checkpoint(
        name=str(path),
        kind="two halves of transformers",
        model=model,
        tokenizer=hugging_face.open_matching_tokenizer(path / TOKENIZER, configs["text_config"], model),
        preprocess=preprocess,
        read=read,
        files=f"{TEXT}/, {TOKENIZER}/, {IMAGE}/ (scale of the logits, which they lack: {MAX_SCALE:g})",
    )


def read_config(folder: Path, half: str) -> dict:
    """Reads the config of a half, "text" or "vision". Raises LoadError for other classes and for unknown options."""
    file = folder / "config.json"
    config = read_json(file)
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind != f"clip_{half}_model" or classes != [_CLASSES[half]]:
        raise LoadError(
            f"{file}: model_type {kind!r}, architectures {classes!r}; a {half} tower is a 'clip_{half}_model' of the class "
            f"{_CLASSES[half]}"
        )
    hugging_face.check_known(config, half, file)
    return config

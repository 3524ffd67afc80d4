"""Weight files of OpenAI (`ViT-B-32.pt`, `RN50.pt`, …) and Long-CLIP, with the vocabulary in the same directory."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clip_jax.pretrained import open_clip, openai
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import from_peer
from train_jax.weights.tensors import Tensor, open_tensors
from train_jax.weights.wrappers import holds, unwrap

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # file name in openai/CLIP
_SIZE_SCALARS = {"input_resolution", "context_length", "vocab_size"}  # scalars that only OpenAI's files contain


# Long-CLIP (arXiv 2403.15378, section 3.1) keeps OpenAI's first 20 positions of texts, and stretches the others to a second
# table, of which those after the first 20 are used.
_STRETCHED, _NUM_KEPT = "positional_embedding_res", 20


def open_file(path: Path) -> Checkpoint:
    """Opens a weight file of OpenAI or of Long-CLIP, whose models were fine-tuned from those of OpenAI.

    Raises LoadError for other files, such as open_clip's. Their tensors have the same names, but the activation, the
    number of heads and the channel means may differ.
    """
    source = str(path)
    tensors = unwrap(open_tensors(path), openai.ANCHOR, source)
    if not is_openai_file(path, tensors):
        raise LoadError(
            f"{path} does not record activation, heads and preprocessing of its model: it is not from OpenAI (with "
            f"{', '.join(sorted(_SIZE_SCALARS))} in it), and {open_clip.CONFIG} is missing in its directory. Add the file "
            "of its repository, or the file of open_clip's model_configs/ with which the model was trained (one with "
            '"quick_gelu": true if it was fine-tuned from weights of OpenAI)'
        )
    is_long = _STRETCHED in tensors
    if is_long:
        tensors = _join_positions(tensors)
    model = openai.infer_options(tensors, source)
    return Checkpoint(
        name=source,
        kind="Long-CLIP" if is_long else "OpenAI",
        model=model,
        tokenizer=_open_tokenizer(path.parent, model),
        preprocess=Preprocess(model["image"]["size"]),
        read=lambda: (from_peer(tensors, openai.list_entries(model), source, openai.IGNORED), source),
        files=f"{path.name} (activation, heads and preprocessing: OpenAI's)",
    )


def is_openai_file(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Checks whether a checkpoint of CLIP is a file from OpenAI or Long-CLIP.

    Long-CLIP's files have a second table of text positions. OpenAI's contain three scalars (input_resolution,
    context_length, vocab_size), or are TorchScript archives without classes of open_clip.
    """
    if tensors.keys() >= _SIZE_SCALARS or holds(tensors, _STRETCHED):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        code = [name for name in archive.namelist() if "/code/__torch__/" in name]
    return bool(code) and not any("/__torch__/open_clip" in name for name in code)


def _join_positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the two tables of text positions of Long-CLIP by one, of the rows that are used."""
    tensors = dict(tensors)
    first, stretched = tensors["positional_embedding"], tensors.pop(_STRETCHED)
    tensors["positional_embedding"] = Tensor(
        stretched.shape, lambda: np.concatenate([first.load()[:_NUM_KEPT], stretched.load()[_NUM_KEPT:]])
    )
    return tensors


def _open_tokenizer(folder: Path, model: Mapping) -> Tokenizer:
    if (folder / VOCABULARY).is_file():
        return Tokenizer.from_merges(folder / VOCABULARY, model["text"]["context_length"])
    try:
        return open_tokenizer(folder, model)
    except LoadError as error:
        raise LoadError(
            f"{error}. OpenAI's files contain no vocabulary: put {VOCABULARY} (from github.com/openai/CLIP), or the "
            f"tokenizer.json of any CLIP from OpenAI, into {folder}"
        ) from error

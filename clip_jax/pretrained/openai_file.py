"""OpenAI's own files (`ViT-B-32.pt`, `RN50.pt`, …), and state dicts of the same names. The vocabulary lies beside them."""

from collections.abc import Mapping
from pathlib import Path

from clip_jax.pretrained import openai
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import take
from train_jax.weights.tensors import Tensor, open_tensors

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # its name in openai/CLIP


def open_file(path: Path) -> Checkpoint | None:
    """The checkpoint in a `.pt` file (or its state dict as `.safetensors`); None for another kind of file."""
    if path.suffix not in (".pt", ".pth", ".bin", ".safetensors"):
        return None
    tensors = bare(open_tensors(path))
    where = str(path)
    model = openai.options(tensors, where)
    return Checkpoint(
        name=where,
        kind="OpenAI",
        model=model,
        tokenizer=_tokenizer(path.parent, model),
        preprocess=Preprocess(model["image"]["size"]),
        read=lambda: (take(tensors, openai.entries(model), where, openai.IGNORED), where),
    )


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what trainers put in front of them; of a training checkpoint the model alone."""
    if any(name.startswith("state_dict.") for name in tensors):
        tensors = {name: x for name, x in tensors.items() if name.startswith("state_dict.")}
    return {name.removeprefix("state_dict.").removeprefix("module."): x for name, x in tensors.items()}


def _tokenizer(folder: Path, model: Mapping) -> Tokenizer:
    if (folder / VOCABULARY).is_file():
        return Tokenizer.from_merges(folder / VOCABULARY, model["text"]["context_length"])
    try:
        return open_tokenizer(folder, model)
    except LoadError as error:
        raise LoadError(
            f"{error}. OpenAI's files hold no vocabulary: put {VOCABULARY} (of github.com/openai/CLIP), or the "
            f"tokenizer.json of any CLIP of OpenAI's, into {folder}"
        ) from error

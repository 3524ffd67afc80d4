"""What was understood of a model in files, and how far its numbers are from the peer's where the peer is installed."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import model as model_lib
from clip_jax.pretrained import Checkpoint, LoadError, open_checkpoint
from nn_jax.transformer import Block

TEXTS = ("a photo of a cat.", "two dogs play with a red ball", "42")


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a layer's output is from the peer's: the largest difference, over the largest value of the peer's."""

    layer: str
    largest: float
    relative: float


def describe(found: Checkpoint, module: model_lib.CLIP) -> dict[str, str]:
    """What was understood: name -> value, for people."""
    options, preprocess = module.options, found.preprocess
    image, text = options.image, options.text
    if image.tower == "resnet":
        tower = (
            f"ResNet, {'-'.join(map(str, image.layers))} blocks, width {image.width}, {image.heads} heads at the end"
        )
        pooling = "attention"
    else:
        blocks = f"{image.depth} layers, width {image.width}, {image.heads} heads"
        tower = f"ViT, {blocks}, patches of {image.patch} px"
        pooling = {"cls": "class token", "mean": "mean", "map": "attention (MAP)"}[image.pool]
    where = {"eos": f"first token {module.eos_id}", "argmax": "largest id", "last": "last place"}[text.pool]
    sees = "what comes before" if text.causal else "all"
    return {
        "format": found.kind,
        "embedding": str(options.embed_dim),
        "image tower": f"{tower}; {image.size} px; pooling: {pooling}",
        "text tower": f"{text.depth} layers, width {text.width}, {text.heads} heads; "
        f"a token sees {sees}; read at: {where}",
        "activation": f"{options.activation}, layer norms with eps {options.eps:g}",
        "loss": options.loss,
        "preprocessing": f"{preprocess.mode} to {preprocess.size} px, {preprocess.interpolation}, "
        f"mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)}",
        "read from": found.files,
        "tokenizer": f"{type(found.tokenizer).__name__}, {found.tokenizer.vocab_size} tokens, rows of {text.context_length}",
    }


def _numbers(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def comparable(found: Checkpoint) -> bool:
    """Whether it is a directory that transformers opens."""
    return found.kind.startswith("Hugging Face") and Path(found.name).is_dir()


def peer_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def compare(path: str | Path) -> list[Difference]:
    """Layer by layer, this model beside transformers' own, on random pictures and a few texts, in float32.

    Raises LoadError if `path` is not a directory that transformers opens; ImportError without torch and transformers.
    """
    import torch
    import transformers

    found = open_checkpoint(path)
    if not comparable(found):
        raise LoadError(
            f"{path} is a model of {found.kind}: only directories for transformers can be compared layer by layer"
        )
    module = found.module(scan=False)
    variables = jax.tree.map(jnp.asarray, found.variables(module)[0])
    size = module.options.image.size
    pixels = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    ids = found.tokenizer.encode(TEXTS)

    peer = transformers.AutoModel.from_pretrained(str(found.name), local_files_only=True).float().eval()
    seen: dict[str, list[np.ndarray]] = {"image": [], "text": []}

    def hook(tower: str):
        def keep(_, __, output) -> None:
            seen[tower].append((output[0] if isinstance(output, tuple) else output).numpy())

        return keep

    for tower, part in (("image", peer.vision_model), ("text", peer.text_model)):
        for layer in part.encoder.layers:
            layer.register_forward_hook(hook(tower))
    with torch.no_grad():
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        whole = peer(input_ids=torch.from_numpy(ids).long(), pixel_values=images)
    rows, found_features = [], {}
    for tower, inputs in (("image", pixels), ("text", ids)):
        layers, features = _layers(module, variables, tower, inputs)
        found_features[tower] = features
        for number, (mine, theirs) in enumerate(zip(layers, seen[tower], strict=True), 1):
            rows.append(_difference(f"{tower} layer {number}", mine, theirs))
        embeds = whole.image_embeds if tower == "image" else whole.text_embeds
        unit = torch.nn.functional.normalize(embeds, dim=-1).numpy()
        rows.append(_difference(f"{tower} features", features, unit))
    scale, bias = (np.asarray(x) for x in module.apply(variables, method="scale_and_bias"))
    mine = scale * found_features["image"] @ found_features["text"].T + bias
    rows.append(_difference("logits", mine, whole.logits_per_image.numpy()))
    return rows


def _layers(module: model_lib.CLIP, variables, tower: str, inputs) -> tuple[list[np.ndarray], np.ndarray]:
    """The output of each block, and the features."""
    features, state = module.apply(
        variables,
        jnp.asarray(inputs),
        method=f"encode_{tower}",
        capture_intermediates=lambda part, _: isinstance(part, Block),
        mutable=["intermediates"],
    )
    blocks = state["intermediates"]["vision" if tower == "image" else "text"]["transformer"]
    outputs = [np.asarray(blocks[f"block_{number}"]["__call__"][0]) for number in range(len(blocks))]
    return outputs, np.asarray(features)


def _difference(layer: str, mine: np.ndarray, theirs: np.ndarray) -> Difference:
    largest = float(np.abs(mine - theirs).max())
    return Difference(layer, largest, largest / float(np.abs(theirs).max()))

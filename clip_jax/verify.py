"""Describes a checkpoint and compares its layer outputs with those of transformers, if transformers is installed."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import model as model_lib
from clip_jax.pretrained import Checkpoint, LoadError, open_checkpoint
from nn_jax.patches import cut_patches
from nn_jax.transformer import Block

TEXTS = ("a photo of a cat.", "two dogs play with a red ball", "42")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between a layer's output here and in transformers.

    Attributes:
      layer: name of the layer.
      largest: largest absolute difference.
      relative: `largest` divided by the largest absolute value in transformers.
    """

    layer: str
    largest: float
    relative: float


def describe(checkpoint: Checkpoint, module: model_lib.CLIP) -> dict[str, str]:
    """Describes the architecture, preprocessing, tokenizer and files of a checkpoint as name -> readable value."""
    options, preprocess, tokenizer = module.options, checkpoint.preprocess, checkpoint.tokenizer
    image, text = options.image, options.text
    if image.tower == "resnet":
        tower = (
            f"ResNet, {'-'.join(map(str, image.layers))} blocks, width {image.width}, {image.heads} heads at the end"
        )
        pooling = "attention"
    elif image.tower == "convnext":
        tower, pooling = f"ConvNeXt, {'-'.join(map(str, image.layers))} blocks, width {image.width}", "mean"
    elif image.tower == "mci":
        tower, pooling = f"MCi, {'-'.join(map(str, image.layers))} blocks, width {image.width}", "mean"
    else:
        blocks = f"{image.depth} layers, width {image.width}, {image.heads} heads"
        more = "" if image.rope == "none" else f", rotary positions ({image.rope})"
        more += ", gated MLPs" * image.gated + f", {image.branch_norms} norms in branches" * (image.branch_norms != "none")
        more += {"mbconv": ", stem of inverted bottlenecks", "hmlp": ", stem of three convolutions"}.get(image.stem, "")
        more += ", any aspect ratio" * image.native
        more += "" if image.learned_positions else ", no learned positions"
        more += "" if image.key_bias else ", keys without bias"
        more += ", norms of queries and keys" * image.qk_norm + f", {image.registers} registers" * bool(image.registers)
        tower = f"ViT, {blocks}, patches of {image.patch} px{more}"
        pooling = {"cls": "class token", "mean": "mean", "map": "attention (MAP)", "query": "attention (CoCa)"}[image.pool]
    text_pool = {
        "eos": f"first token {module.eos_id}", "argmax": "largest id",
        "first": "first position", "last": "last position", "cls": "class token",
        "mean": "mean",
    }[text.pool]  # fmt: skip
    attention = "causal" if text.causal else "bidirectional"
    text_layers = (text.activation or options.activation, text.eps or options.eps)
    return {
        "format": checkpoint.kind,
        "embedding": str(options.embed_dim),
        "image tower": f"{tower}; {image.size} px; pooling: {pooling}",
        "text tower": f"{text.depth} layers, width {text.width}, {text.heads} heads; "
        f"{attention} attention; pooling: {text_pool}",
        "activation": _describe_layers(options.activation, options.eps)
        + (f"; texts: {_describe_layers(*text_layers)}" if text_layers != (options.activation, options.eps) else ""),
        "loss": options.loss,
        "preprocessing": f"{preprocess.mode} to "
        + (f"{preprocess.max_patches} patches" if preprocess.is_native else f"{preprocess.size} px")
        + f", {preprocess.interpolation}, "
        f"mean {_join(preprocess.mean)}, std {_join(preprocess.std)}",
        "read from": checkpoint.files,
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size} tokens, rows of {text.context_length}",
    }


def _describe_layers(activation: str, eps: float) -> str:
    return f"{activation}, layer norms with eps {eps:g}"


def _join(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def is_comparable(checkpoint: Checkpoint) -> bool:
    """Checks whether a checkpoint is a directory that transformers opens."""
    return checkpoint.kind.startswith("Hugging Face") and Path(checkpoint.name).is_dir()


def is_peer_installed() -> bool:
    """Checks whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def compare(path: str | Path) -> list[Difference]:
    """Compares a model layer by layer with transformers, on random images and a few texts, in float32.

    Raises LoadError if `path` is not a directory that transformers opens, and ImportError if torch or transformers is
    not installed.
    """
    import torch
    import transformers

    checkpoint = open_checkpoint(path)
    if not is_comparable(checkpoint):
        raise LoadError(
            f"{path} is a model of {checkpoint.kind}: only directories for transformers can be compared layer by layer"
        )
    module = checkpoint.module(scan=False)
    variables = jax.tree.map(jnp.asarray, checkpoint.variables(module)[0])
    size = module.options.image.size
    pixels = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    ids = checkpoint.tokenizer.encode(TEXTS)

    peer = transformers.AutoModel.from_pretrained(str(checkpoint.name), local_files_only=True).float().eval()
    peer_layers: dict[str, list[np.ndarray]] = {"image": [], "text": []}

    def hook(tower: str):
        def record(_, __, output) -> None:
            peer_layers[tower].append((output[0] if isinstance(output, tuple) else output).numpy())

        return record

    for tower, part in (("image", peer.vision_model), ("text", peer.text_model)):
        for layer in part.encoder.layer if hasattr(part.encoder, "layer") else part.encoder.layers:
            layer.register_forward_hook(hook(tower))
    with torch.no_grad():
        if module.options.image.native:
            patch = module.options.image.patch
            patches, grids = torch.from_numpy(cut_patches(pixels, patch)), torch.full((len(pixels), 2), size // patch)
            mask = torch.ones(patches.shape[:2])
            images = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grids}
        else:
            images = {"pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())}
        texts = {"input_ids": torch.from_numpy(ids).long()}
        if module.options.text.pad_id >= 0:
            texts["attention_mask"] = (texts["input_ids"] != module.options.text.pad_id).long()
        peer_output = peer(**texts, **images)
    differences, features = [], {}
    for tower, inputs in (("image", pixels), ("text", ids)):
        layers, features[tower] = _capture_layers(module, variables, tower, inputs)
        for index, (ours, theirs) in enumerate(zip(layers, peer_layers[tower], strict=True), 1):
            differences.append(_measure_difference(f"{tower} layer {index}", ours, theirs))
        embeds = peer_output.image_embeds if tower == "image" else peer_output.text_embeds
        peer_features = torch.nn.functional.normalize(embeds, dim=-1).numpy()
        differences.append(_measure_difference(f"{tower} features", features[tower], peer_features))
    scale, bias = (np.asarray(x) for x in module.apply(variables, method="scale_and_bias"))
    logits = scale * features["image"] @ features["text"].T + bias
    differences.append(_measure_difference("logits", logits, peer_output.logits_per_image.numpy()))
    return differences


def _capture_layers(module: model_lib.CLIP, variables, tower: str, inputs) -> tuple[list[np.ndarray], np.ndarray]:
    """Computes the output of each block of a tower, and the features of the tower."""
    features, state = module.apply(
        variables,
        jnp.asarray(inputs),
        method=f"encode_{tower}",
        capture_intermediates=lambda module, _: isinstance(module, Block),
        mutable=["intermediates"],
    )
    blocks = state["intermediates"]["vision" if tower == "image" else "text"]["transformer"]
    outputs = [np.asarray(blocks[f"block_{index}"]["__call__"][0]) for index in range(len(blocks))]
    return outputs, np.asarray(features)


def _measure_difference(layer: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    largest = float(np.abs(ours - theirs).max())
    return Difference(layer, largest, largest / float(np.abs(theirs).max()))

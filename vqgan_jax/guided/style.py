"""Style of a picture: Gram matrices of a network's feature maps (arXiv 1508.06576), which know no positions.

The network is the image tower of the first CLIP, which sees the picture at its resolution, or the VGG16 of LPIPS, which sees
all pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from clip_jax.clip import Clip
from nn_jax.transformer import unstack_blocks
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import perceptual
from vqgan_jax.guided import starts
from vqgan_jax.guided.options.losses import Style

Grams = list[Float[Array, "_ _"]]


def load_network(path: str | None) -> Any:
    """Loads the weights of VGG16 from a file of LPIPS, NumPy arrays; None: no file. Raises ConfigError for other files."""
    try:
        return None if path is None else perceptual.load_lpips(path).weights["vgg"]
    except (LoadError, OSError) as error:
        raise ConfigError(f"style_network: {error}") from error


def load_grams(options: Style, size: tuple[int, int], network: Any, clip: Clip) -> list[Float32[np.ndarray, "_ _"]]:
    """Computes the Gram matrices of the style image, which covers a picture of `size` and is cropped to it.

    Raises BrokenSample for an unreadable image, and ConfigError for pictures that are too small for the network.
    """
    least = perceptual.MIN_SIDE
    if network is not None and min(size) < least:
        raise ConfigError(f"size = {size[0]} x {size[1]}: style_network needs sides of at least {least} pixels")
    image = starts.load_image(options.style, size, "style")
    if network is None:
        mean, std = (tuple(values) for values in (clip.preprocess.mean, clip.preprocess.std))
        grams = jax.jit(lambda variables, x: clip_grams(clip.module, variables, x, mean, std))(clip.variables, image)
    else:
        grams = jax.jit(vgg_grams)(network, image)
    return [np.asarray(gram) for gram in grams]


def vgg_grams(network: Any, x: Float[Array, "H W 3"]) -> Grams:
    """Computes the Gram matrices of the maps before each max pooling of VGG16, and of the last one."""
    return [_gram(maps) for maps in perceptual.vgg_features(network, 2 * x[None] - 1, jnp.float32)]


def clip_grams(module, variables, x: Float[Array, "H W 3"], mean: Sequence[float], std: Sequence[float]) -> Grams:
    """Computes the Gram matrices of the maps of a CLIP's image tower, to whose size the picture is resized.

    Maps of a ViT are the tokens after a third and after two thirds of its blocks, those of other towers the ends of stages.
    """
    options = module.options.image
    if options.tower == "vit":
        names = [f"block_{count - 1}" for count in sorted({max(1, round(options.depth * part / 3)) for part in (1, 2)})]
        # Blocks in a scan keep no intermediates.
        module = module.clone(compute=dataclasses.replace(module.compute, scan=False))
        vision = variables["params"]["vision"]
        vision = vision | {"transformer": unstack_blocks(vision["transformer"])}
        variables = variables | {"params": variables["params"] | {"vision": vision}}
    else:
        names = [f"stage{stage}_{blocks - 1}" for stage, blocks in enumerate(options.layers, 1)]
    x = jax.image.resize(x, (options.size, options.size, 3), "linear")
    x = (x - jnp.asarray(mean)[None, None]) / jnp.asarray(std)[None, None]
    _, state = module.apply(
        variables, x[None], method="encode_image", mutable=["intermediates"],
        capture_intermediates=lambda part, method: part.name in names and method == "__call__",
    )  # fmt: skip
    maps: Mapping = state["intermediates"]["vision"]
    maps = maps.get("transformer", maps)
    return [_gram(maps[name]["__call__"][0]) for name in names]


def _gram(maps: Float[Array, "1 *positions c"]) -> Float[Array, "c c"]:
    """Computes the mean over positions of the products of channels."""
    features = maps.reshape(-1, maps.shape[-1]).astype(jnp.float32)
    return jnp.matmul(features.T, features, precision=jax.lax.Precision.HIGHEST) / len(features)


def style_loss(grams: Grams, style: Grams) -> Float[Array, ""]:
    """Computes the mean over maps of the squared distance of Gram matrices, relative to the squared norm of the style's."""
    squares = [jnp.sum((a - b) ** 2) / jnp.sum(b**2) for a, b in zip(grams, style, strict=True)]
    return sum(squares[1:], squares[0]) / len(squares)

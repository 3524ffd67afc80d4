"""Prior of a painting: the likelihood of its codes under a second stage, as a loss beside CLIP's.

CLIP's similarity alone admits codes that no image has; the second stage's likelihood penalises them: that of any image, or
of images of the prompt. Codes are given to it as distributions, through which gradients flow.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from nn_jax.code_transformer import CodeTransformer
from train_jax.errors import ConfigError
from vqgan_jax.guided import second_stages
from vqgan_jax.guided.prompts import Scene
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.vqgan import Vqgan


class PriorWeights(NamedTuple):
    """Weights of a second stage, and the spacing of the codes (`latents`)."""

    params: Mapping[str, Any]
    spacing: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Prior:
    """Second stage of a VQGAN's codes, without the VQGAN.

    Attributes:
      params: weights of the module, on the devices.
      fingerprint: SHA-256 of the second stage.
    """

    module: CodeTransformer
    condition: Condition
    params: Mapping[str, Any]
    fingerprint: str

    def encode(self, scenes: Sequence[Scene], with_text: bool, is_guided: bool = False) -> Int32[np.ndarray, "n k c"]:
        """Encodes the conditions of prompts: their first text of positive weight, or none; for guidance, both (k = 2).

        Raises ConfigError for a second stage that has no texts, and for a prompt without such a text.
        """
        without = np.repeat(self.condition.null[None], len(scenes), axis=0)
        if not with_text:
            return without[:, None]
        texts = second_stages.read_texts(self.condition, scenes, "prior_text = True")
        conditions = self.condition.encode(texts)
        return np.stack([conditions, without] if is_guided else [conditions], axis=1)


def load(path: str, vq: Vqgan, size: tuple[int, int]) -> Prior:
    """Loads a second stage, in the precision of the VQGAN.

    Args:
      path: run directory of a prior or of a DALL-E.
      size: height and width of the painting in pixels.

    Raises ConfigError for another directory, a second stage of other codes or of another size, and for one that was not
    trained without condition.
    """
    generator = second_stages.load(path, "prior", vq.compute.dtype)
    if generator.vqgan.fingerprint != vq.fingerprint:
        remedy = f"paint with its copy in the run, --vqgan {path}/vqgan.safetensors"
        raise ConfigError(
            f"prior = {path} models the codes of {generator.vqgan.name}, which is not the VQGAN that paints: {remedy}"
        )
    trained = tuple(side * vq.factor for side in generator.grid)
    if size != trained:
        sides = f"{trained[0]} x {trained[1]} pixels: set --size {trained[1]}x{trained[0]}"
        raise ConfigError(f"size = {size[0]} x {size[1]}: the prior models pictures of {sides}")
    if not generator.condition.droppable:
        raise ConfigError(
            f"prior = {path} was trained with condition_dropout = 0: it knows no pictures without a condition; train it "
            "with --config.condition_dropout=0.1"
        )
    return Prior(generator.module, generator.condition, generator.variables, generator.fingerprint)


def mean_nats(
    module: CodeTransformer,
    params: Mapping[str, Any],
    condition: Int[Array, "k c"],
    guidance: Float[Array, ""],
    probabilities: Float[Array, "h w K"],
) -> Float[Array, ""]:
    """Computes the expected negative log-likelihood of a code, in nats, of codes with these probabilities.

    For one-hot probabilities it is the mean over the codes of `-log p(code | codes before it)`.

    Args:
      condition: tokens of the condition, and those of none if the likelihood is guided (k = 2).
      guidance: factor of the difference to the logits without condition (arXiv 2207.12598), as in sampling.
    """
    codes = probabilities.reshape(1, -1, probabilities.shape[-1])
    _, logits = module.apply({"params": params}, condition, jnp.repeat(codes, len(condition), axis=0))
    if len(condition) == 2:
        conditional, unconditional = logits
        logits = (unconditional + guidance * (conditional - unconditional))[None]
    log_p = jax.nn.log_softmax(logits[..., module.code_offset :])
    return -jnp.mean(jnp.sum(codes * log_p, axis=-1))

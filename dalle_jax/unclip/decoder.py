"""Decoder and upsampler for inference: embeddings and token ids to pixels, and back to noise."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt32

from dalle_jax.unclip.decoder_stage import DecoderStage, to_signed
from dalle_jax.unclip.prior_stage import DECODER_STAGE, UPSAMPLER_STAGE, make_keys
from dalle_jax.unclip.samplers import make_steps
from dalle_jax.unclip.upsampler_stage import UpsamplerStage
from train_jax import inference
from train_jax.data.text import AnyTokenizer

PREVIEWS = 5  # unfinished pictures of a batch, of which each costs a transfer to the host


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder for inference.

    Attributes:
      variables: weights on the devices of this host; see `DecoderStage`.
    """

    stage: DecoderStage
    variables: Any
    tokenizer: AnyTokenizer

    def decode(
        self,
        embeddings: Float32[np.ndarray, "b dim"],
        ids: Int32[np.ndarray, "b n"],
        seeds: UInt32[np.ndarray, "b 3"],
        *,
        noise: Float32[np.ndarray, "b h w 3"] | None = None,
        steps: int,
        guidance: float,
        eta: float | None,
        batch_size: int,
        advance: Callable[[int], object] = lambda count: None,
        preview: Callable[[int, int, UInt8[np.ndarray, "b h w 3"]], object] | None = None,
    ) -> Float32[np.ndarray, "b h w 3"]:
        """Samples pixels in [-1, 1].

        Args:
          seeds: rows of `dalle_jax.unclip.prior.make_seeds`.
          noise: noise to start from; None: drawn by the seeds.
          eta: scale of the noise of DDIM; None: ancestral sampling.
          advance: function that is told the number of images of each batch, before it is computed.
          preview: callback of the batch's first image, the number of steps taken, and images of the clean pixels that the
            network predicts, `PREVIEWS` times during the sampling of a batch; None: a batch is one call of one program.
        """
        arrays = {"embedding": embeddings, "ids": ids, "seeds": seeds} | ({} if noise is None else {"noise": noise})
        table, scale = make_steps(self.stage.diffusion, steps), np.float32(guidance)
        static = {"guided": guidance != 1, "ancestral": eta is None}

        def program(variables, rows):
            return self.decode_program(variables, rows, self._null_ids, table, scale, np.float32(eta or 0), **static)

        def program_in_parts(variables, rows):
            index, sharding = np.asarray(rows.pop("row")), rows["seeds"].sharding
            x, pixels = np.zeros((len(index), self.stage.size, self.stage.size, 3), np.float32), None
            for start in range(0, steps, part := -(-steps // PREVIEWS)):
                x, bounds = jax.device_put(x, sharding), np.array([start, min(start + part, steps)], np.int32)
                x, pixels = self.decode_part_program(
                    variables, x, bounds, rows, self._null_ids, table, scale, np.float32(eta or 0), **static
                )
                preview(int(index[0]) - 1, int(bounds[1]), pixels_to_uint8(np.asarray(pixels)[index > 0]))
            return pixels

        if preview is not None:
            arrays["row"] = np.arange(1, len(ids) + 1, dtype=np.int32)  # 0: padding
            return _run(program_in_parts, self.variables, arrays, batch_size, advance)
        return _run(program, self.variables, arrays, batch_size, advance)

    def invert(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        embeddings: Float32[np.ndarray, "b dim"],
        ids: Int32[np.ndarray, "b n"],
        *,
        steps: int,
        batch_size: int,
    ) -> Float32[np.ndarray, "b h w 3"]:
        """Encodes images as the noise from which DDIM samples them, with eta = 0 and without guidance."""
        arrays = {"image": images, "embedding": embeddings, "ids": ids}
        table = make_steps(self.stage.diffusion, steps)

        def program(variables, rows):
            return self.invert_program(variables, rows, self._null_ids, table)

        return _run(program, self.variables, arrays, batch_size)

    @functools.cached_property
    def _null_ids(self) -> Int32[np.ndarray, "n"]:
        return self.tokenizer.encode([""])[0]

    @functools.cached_property
    def decode_program(self) -> Callable:
        """The jitted sampling: `(variables, rows, null_ids, steps, guidance, eta, guided, ancestral) -> pixels`."""

        def decode(variables, rows, null_ids, steps, guidance, eta, guided: bool, ancestral: bool):
            predict, keys, noise = self._begin(variables, rows, null_ids, guidance, guided)
            return self.stage.denoise(predict, noise, keys, steps, eta, ancestral=ancestral)

        return jax.jit(decode, static_argnames=("guided", "ancestral"))

    @functools.cached_property
    def decode_part_program(self) -> Callable:
        """The jitted part of a sampling: `(variables, x, [start, stop], …)`, then as `decode_program`, to `x` and pixels.

        The first part starts from noise, and `x` is not read.
        """

        def decode(variables, x, bounds, rows, null_ids, steps, guidance, eta, guided: bool, ancestral: bool):
            predict, keys, noise = self._begin(variables, rows, null_ids, guidance, guided)
            x = jnp.where(bounds[0] > 0, x, noise)
            return self.stage.denoise_part(predict, x, keys, steps, eta, *bounds, ancestral=ancestral)

        return jax.jit(decode, static_argnames=("guided", "ancestral"))

    def _begin(self, variables, rows, null_ids, guidance, guided: bool):
        """Makes the network's function, the keys, and the noise from which sampling starts."""
        predict = self.stage.make_predict(variables, rows["embedding"], rows["ids"], null_ids, guidance, guided=guided)
        keys = make_keys(rows["seeds"], DECODER_STAGE)
        return predict, keys, rows["noise"] if "noise" in rows else self.stage.draw_noise(keys)

    @functools.cached_property
    def invert_program(self) -> Callable:
        """The jitted inversion: `(variables, rows, null_ids, steps) -> noise`."""
        stage = self.stage

        def invert(variables, rows, null_ids, steps):
            predict = stage.make_predict(variables, rows["embedding"], rows["ids"], null_ids)
            return stage.invert(predict, to_signed(rows["image"]), steps)

        return jax.jit(invert)


@dataclasses.dataclass(frozen=True, eq=False)
class Upsampler:
    """An upsampler for inference.

    Attributes:
      variables: weights on the devices of this host; see `UpsamplerStage`.
      steps: number of sampling steps.
    """

    stage: UpsamplerStage
    variables: Any
    steps: int

    def upsample(
        self,
        pixels: Float32[np.ndarray, "b h w 3"],
        seeds: UInt32[np.ndarray, "b 3"],
        *,
        batch_size: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Float32[np.ndarray, "b H W 3"]:
        """Samples large images of small ones, both pixels in [-1, 1]. Other arguments are as in `Decoder.decode`."""
        table = make_steps(self.stage.diffusion, self.steps)

        def program(variables, rows):
            return self.upsample_program(variables, rows, table)

        return _run(program, self.variables, {"pixels": pixels, "seeds": seeds}, batch_size, advance)

    @functools.cached_property
    def upsample_program(self) -> Callable:
        """The jitted sampling: `(variables, rows, steps) -> pixels`."""

        def upsample(variables, rows, steps):
            return self.stage.draw(variables, rows["pixels"], make_keys(rows["seeds"], UPSAMPLER_STAGE), steps)

        return jax.jit(upsample)


def _run(
    program: Callable,
    variables: Any,
    arrays: dict[str, np.ndarray],
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """Applies a program to rows of arrays in batches."""

    def rows(start: int, stop: int) -> dict[str, np.ndarray]:
        advance(stop - start)
        return {name: x[start:stop] for name, x in arrays.items()}

    row = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in arrays.items()}
    return inference.batched(program, variables, rows, len(next(iter(arrays.values()))), row, batch_size)


def pixels_to_uint8(pixels: Float32[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Converts pixels in [-1, 1] to images, on the host."""
    return np.round((np.clip(pixels, -1, 1) + 1) * np.float32(255 / 2)).astype(np.uint8)

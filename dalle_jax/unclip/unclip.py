"""unCLIP (DALL-E 2, arXiv 2204.06125) for inference: images of prompts, variations, interpolations, edits."""

import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8
from tqdm import tqdm

from clip_jax.clip import Clip
from dalle_jax.unclip.decoder import Decoder, Upsampler, pixels_to_uint8
from dalle_jax.unclip.prior import Prior, make_seeds
from train_jax.data.images import Preprocess
from train_jax.data.text import AnyTokenizer
from train_jax.errors import in_float32
from train_jax.options import Options
from train_jax.weights.layout import flatten, hash_arrays
from vqgan_jax.stage2.generator import stream_drawings
from vqgan_jax.stage2.rerank import clip_scores, open_reranker
from vqgan_jax.stage2.sampling import first_samples
from vqgan_jax.vqgan import ImageInput, ImageInputs

log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Imagined:
    """Images of prompts. With reranking, samples of a prompt are sorted by descending score.

    Attributes:
      embeddings: CLIP image embeddings that the prior sampled, not normalised to unit length.
      scores: scores of the ranking, or None.
      samples: number of each sample of a prompt before the ranking.
    """

    images: UInt8[np.ndarray, "p n H W 3"]
    embeddings: Float32[np.ndarray, "p n dim"]
    scores: Float32[np.ndarray, "p n"] | None
    samples: Int[np.ndarray, "p n"]

    def select(self, row: int) -> "Imagined":
        """Returns the images of one prompt."""
        return jax.tree.map(lambda x: x[row : row + 1], self)


@dataclasses.dataclass(frozen=True, eq=False)
class Unclip:
    """unCLIP for inference: a prior of image embeddings, a decoder of embeddings, and an upsampler. `load` opens one.

    Attributes:
      prior: None for a decoder alone, which cannot imagine prompts.
      upsampler: None: images have the decoder's size.
      clip: CLIP of the embeddings; None: its text tower alone is there, and there are no embeddings of images.
      moments: mean [dim] and covariance [dim, dim] of the training embeddings; None: unknown.
      name: source of the weights, for messages.
    """

    tokenizer: AnyTokenizer
    prior: Prior | None
    decoder: Decoder
    upsampler: Upsampler | None
    clip: Clip | None
    moments: tuple[np.ndarray, np.ndarray] | None
    dtype: str
    name: str

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.decoder.stage.size if self.upsampler is None else self.upsampler.stage.size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of options and weights of all parts, in the precision in which they were loaded."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for part in (self.prior, self.decoder, self.upsampler):
            if part is not None:
                digest.update(repr(_describe(part.stage)).encode())
                hash_arrays(digest, flatten(part.variables))
        return digest.hexdigest()

    # -----------------------------------------------------------------------------------------------------------------
    # Prompts

    def imagine(self, prompts: Sequence, n: int = 1, **options) -> UInt8[np.ndarray, "p n H W 3"]:
        """Samples images of prompts and returns the images only; arguments are as in `draw`."""
        return self.draw(prompts, n, **options).images

    def draw(
        self,
        prompts: Sequence,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: float | int = 1.0,
        prior_guidance: float | int = 1.0,
        steps: int = 25,
        prior_steps: int = 25,
        eta: float | int | None = None,
        rerank: Any = None,
        best: int | None = None,
        first: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 64,
        progress: bool = True,
        preview: Callable[[int, int, np.ndarray], object] | None = None,
    ) -> Imagined:
        """Samples images of prompts; returns images, embeddings and scores.

        The prior samples two embeddings for each image, of which the one with the larger z_i . z_t is decoded (section
        2.2). Decoder and prior are guided separately.

        Args:
          prompts: texts. A repeated prompt gets the additional samples of a larger `n`.
          n: number of samples per prompt.
          seed: random seed, 0 to 2^32 - 1. Sample i of a prompt does not depend on other prompts or `batch_size`.
          guidance, prior_guidance: scales of classifier-free guidance; 1: none. karlo's are 8 and 4.
          steps, prior_steps: numbers of sampling steps of decoder and prior, if it is a diffusion model.
          eta: scale of the noise of DDIM in the decoder, 0 to 1; None: ancestral sampling, with the learned variance.
          rerank: CLIP or its path, which ranks the samples by similarity of image and text.
          best: number of best samples to return.
          first: number of the first sample of each prompt; None: 0, or for a repeated prompt the next one.
          batch_size: maximum number of images per batch.
          progress: whether to show a progress bar.
          preview: callback `(index of the batch's first sample, steps taken, images uint8 [b, h, w, 3])` while the decoder
            samples: the pictures that it predicts, of its own size. Samples are numbered prompt by prompt.

        Raises ValueError for invalid arguments.
        """
        if self.prior is None:
            raise ValueError(f"{self.name} has no prior, which makes embeddings of texts: load it with prior=…")
        self._check_texts(prompts, "prompts")
        self._check(n=n, seed=seed, guidance=guidance, steps=steps, eta=eta, batch_size=batch_size)
        _require(in_float32(prior_guidance), "prior_guidance", prior_guidance, "a number that float32 has; 1 is none")
        timesteps = self.prior.stage.model.timesteps
        is_count = timesteps is None or (isinstance(prior_steps, int | np.integer) and 2 <= prior_steps <= timesteps)
        _require(is_count, "prior_steps", prior_steps, f"an integer in [2, {timesteps}], the timesteps of training")
        if best is not None:
            _require(isinstance(best, int | np.integer) and 1 <= best <= n, "best", best, f"in [1, n = {n}]")
            if rerank is None:
                raise ValueError("best needs a ranking: set rerank")
        prompts = list(prompts)
        first = first_samples(prompts, n) if first is None else np.asarray(first)
        if first.shape != (len(prompts),) or first.dtype.kind not in "iu" or first.min() < 0:
            raise ValueError(f"first = {first.tolist()} must be {len(prompts)} integers, at least 0")
        reranker = None if rerank is None else open_reranker(rerank, self.dtype)
        seeds = make_seeds(prompts, first, n, seed)
        rows, ids = seeds.reshape(-1, 3), np.repeat(self._tokenize(prompts), n, axis=0)
        stages = 2 + (self.upsampler is not None)
        with tqdm(total=len(rows) * stages, unit="step", desc="imagine", disable=not progress) as bar:
            embeddings = self.prior.draw(
                ids, rows, guidance=float(prior_guidance), steps=prior_steps, batch_size=batch_size
            )
            bar.update(len(rows))
            images = self._decode(
                embeddings, ids, rows, steps=steps, guidance=guidance, eta=eta, batch_size=batch_size, advance=bar.update,
                preview=preview,
            )  # fmt: skip
        images, embeddings = (x.reshape(len(prompts), n, *x.shape[1:]) for x in (images, embeddings))
        order, scores = np.tile(np.arange(n), (len(prompts), 1)), None
        if reranker is not None:
            scores = clip_scores(reranker, prompts, images)
            order = np.argsort(-scores, axis=1, kind="stable")[:, : best or n]
            scores = np.take_along_axis(scores, order, axis=1)
        row = np.arange(len(prompts))[:, None]
        samples = np.take_along_axis(seeds[..., 2].astype(int), order, axis=1)
        return Imagined(images[row, order], embeddings[row, order], scores, samples)

    def stream(self, prompts: Sequence, n: int = 1, **options) -> Iterator[tuple[int, Imagined]]:
        """Samples images of any number of prompts in constant memory; yields `(index of the prompt, images)`.

        Arguments are as in `vqgan_jax.stage2.generator.stream_drawings`; the images are those of `draw`.
        """
        self._check_texts(prompts, "prompts")
        if options.get("rerank") is not None:
            options["rerank"] = open_reranker(options["rerank"], self.dtype)  # once
        return stream_drawings(self.draw, prompts, n, **options)

    # -----------------------------------------------------------------------------------------------------------------
    # Images

    def embed(self, images: ImageInputs) -> Float32[np.ndarray, "n dim"]:
        """Computes the CLIP embeddings z_i of images, not normalised to unit length."""
        return self._require_clip().encode_image(images, normalize=False)

    def reconstruct(
        self, images: ImageInputs, *, steps: int = 25, batch_size: int = 64
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Encodes images as embedding and noise (DDIM inversion) and decodes them (section 3)."""
        embeddings, noise = self._encode(images, steps, batch_size)
        return self._decode_images(embeddings, noise, 0, eta=0.0, steps=steps, batch_size=batch_size)

    def vary(
        self,
        image: ImageInput,
        n: int = 4,
        *,
        eta: float | int = 1.0,
        seed: int = 0,
        guidance: float | int = 1.0,
        steps: int = 25,
        batch_size: int = 64,
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Samples variations of an image: its embedding, and the noise to which it inverts (section 3.1).

        Args:
          eta: scale of new noise in every step, 0 to 1; 0: the reconstruction n times.
          n, seed, guidance, steps, batch_size: as in `draw`.
        """
        self._check(n=n, seed=seed, guidance=guidance, steps=steps, eta=eta, batch_size=batch_size)
        embedding, noise = self._encode([image], steps, batch_size)
        embeddings, noise = np.repeat(embedding, n, axis=0), np.repeat(noise, n, axis=0)
        options = {"eta": float(eta), "guidance": guidance, "steps": steps, "batch_size": batch_size}
        return self._decode_images(embeddings, noise, seed, **options)

    def between(
        self,
        first: ImageInput,
        last: ImageInput,
        count: int = 8,
        *,
        seed: int = 0,
        guidance: float | int = 1.0,
        steps: int = 25,
        batch_size: int = 64,
    ) -> UInt8[np.ndarray, "count H W 3"]:
        """Interpolates between two images: spherically between their embeddings, with the same noise (section 3.2).

        Args:
          count: number of images; the first and the last have the embeddings of the two images.
          seed, guidance, steps, batch_size: as in `draw`.
        """
        self._check(n=1, seed=seed, guidance=guidance, steps=steps, eta=0, batch_size=batch_size)
        _require(isinstance(count, int | np.integer) and count >= 2, "count", count, "an integer, at least 2")
        a, b = self.embed([first, last])
        embeddings = np.stack([slerp(a, b, fraction) for fraction in np.linspace(0, 1, count)])
        options = {"eta": 0.0, "guidance": guidance, "steps": steps, "batch_size": batch_size, "shares_noise": True}
        return self._decode_images(embeddings, None, seed, **options)

    def edit(
        self,
        image: ImageInput,
        before: str,
        after: str,
        strength: float | int | Sequence[float | int] = (0.25, 0.3, 0.4, 0.5),
        *,
        guidance: float | int = 1.0,
        steps: int = 25,
        batch_size: int = 64,
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Changes an image by a text difference (section 3.3): z_i turned towards norm(z_t - z_t0), its noise kept.

        Args:
          before, after: descriptions of the image as it is, and as it shall be.
          strength: fractions of the spherical interpolation, 0 to 1: the paper's are 0.25 to 0.5.
          guidance, steps, batch_size: as in `draw`.
        """
        self._check(n=1, seed=0, guidance=guidance, steps=steps, eta=0, batch_size=batch_size)
        strengths = [strength] if isinstance(strength, float | int) else list(strength)
        for value in strengths:
            is_fraction = isinstance(value, float | int) and 0 <= value <= 1
            _require(is_fraction, "strength", value, "a fraction in [0, 1]")
        if not strengths:
            raise ValueError("strength must be a list of at least one fraction")
        self._check_texts([before, after], "before and after")
        difference = np.subtract(*self._embed_texts([after, before]))
        if not np.linalg.norm(difference):
            raise ValueError(f"before = {before!r} and after = {after!r} have the same embedding: name two that differ")
        embedding, noise = self._encode([image], steps, batch_size)
        target = difference / np.linalg.norm(difference) * np.linalg.norm(embedding)
        embeddings = np.stack([slerp(embedding[0], target, fraction) for fraction in strengths])
        options = {"eta": 0.0, "guidance": guidance, "steps": steps, "batch_size": batch_size}
        return self._decode_images(embeddings, np.repeat(noise, len(strengths), axis=0), 0, **options)

    def principal(
        self,
        image: ImageInput,
        dims: Sequence[int],
        *,
        seed: int = 0,
        guidance: float | int = 1.0,
        steps: int = 25,
        batch_size: int = 64,
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Decodes the embedding of an image, projected on the first principal components of embeddings (section 5).

        Args:
          dims: numbers of components, each of which yields an image, with the same noise.
          seed, guidance, steps, batch_size: as in `draw`.
        """
        self._check(n=1, seed=seed, guidance=guidance, steps=steps, eta=0, batch_size=batch_size)
        if self.moments is None:
            raise ValueError(f"{self.name} has no covariance of embeddings, which runs of the decoder's task have")
        mean, covariance = self.moments
        for value in dims:
            is_count = isinstance(value, int | np.integer) and 0 <= value <= len(mean)
            _require(is_count, "dims", value, f"integers in [0, {len(mean)}], the dimension of the embeddings")
        axes = np.linalg.eigh(covariance)[1][:, ::-1]  # columns, the largest variance first
        centered = self.embed([image])[0] - mean
        projected = [mean + axes[:, :value] @ (axes[:, :value].T @ centered) for value in dims]
        options = {"eta": 0.0, "guidance": guidance, "steps": steps, "batch_size": batch_size, "shares_noise": True}
        return self._decode_images(np.stack(projected).astype(np.float32), None, seed, **options)

    # -----------------------------------------------------------------------------------------------------------------

    def _encode(self, images: ImageInputs, steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes images as embeddings, and as the noise of the decoder with the empty text."""
        self._check(n=1, seed=0, guidance=1, steps=steps, eta=0, batch_size=batch_size)
        embeddings = self.embed(images)
        pixels = Preprocess(self.decoder.stage.size).batch(images)
        ids = self._empty_texts(len(pixels))
        return embeddings, self.decoder.invert(pixels, embeddings, ids, steps=steps, batch_size=batch_size)

    def _decode_images(
        self,
        embeddings: np.ndarray,
        noise: np.ndarray | None,
        seed: int,
        *,
        eta: float,
        steps: int,
        batch_size: int,
        guidance: float | int = 1.0,
        shares_noise: bool = False,
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Decodes embeddings with the empty text; all with the noise of the first seed if `shares_noise`."""
        seeds = make_seeds([""], [0], len(embeddings), seed)[0]
        seeds = np.repeat(seeds[:1], len(seeds), axis=0) if shares_noise else seeds
        ids = self._empty_texts(len(embeddings))
        options = {"steps": steps, "guidance": guidance, "eta": eta, "batch_size": batch_size}
        return self._decode(embeddings.astype(np.float32), ids, seeds, noise=noise, **options)

    def _decode(self, embeddings, ids, seeds, *, guidance, batch_size, advance=lambda count: None, **options):
        """Decodes and upsamples; returns uint8 images."""
        shared = {"batch_size": batch_size, "advance": advance}
        pixels = self.decoder.decode(embeddings, ids, seeds, guidance=float(guidance), **shared, **options)
        if self.upsampler is not None:
            pixels = self.upsampler.upsample(pixels, seeds, **shared)
        return pixels_to_uint8(pixels)

    def _tokenize(self, texts: list[str]) -> Int32[np.ndarray, "n length"]:
        """Tokenizes texts. Truncates texts that are too long, and logs a warning."""
        ids, truncated = self.tokenizer.encode_flagged(texts)
        if truncated.any():
            log.warning(
                "%d of %d text(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                truncated.sum(), len(texts), ids.shape[1], texts[int(truncated.argmax())],
            )  # fmt: skip
        return ids

    def _empty_texts(self, count: int) -> np.ndarray:
        return np.repeat(self.tokenizer.encode([""]), count, axis=0)

    def _embed_texts(self, texts: list[str]) -> Float32[np.ndarray, "n dim"]:
        """Computes the CLIP embeddings z_t of texts, not normalised to unit length."""
        return np.asarray(self._text_program(self.decoder.variables["text"], self._tokenize(texts)))

    @functools.cached_property
    def _text_program(self) -> Callable:
        tower = self.decoder.stage.tower
        return jax.jit(lambda params, ids: tower.apply({"params": params}, ids))

    def _require_clip(self) -> Clip:
        if self.clip is None:
            raise ValueError(
                f"{self.name} has no image tower, which embeddings of images need: load it with clip=…, a CLIP with the "
                "same text tower (for karlo, OpenAI's ViT-L/14)"
            )
        return self.clip

    def _check(self, *, n, seed, guidance, steps, eta, batch_size) -> None:
        _require(isinstance(n, int | np.integer) and n >= 1, "n", n, "an integer, at least 1")
        is_seed = isinstance(seed, int | np.integer) and 0 <= seed < 2**32
        _require(is_seed, "seed", seed, "an integer in [0, 2^32)")
        _require(in_float32(guidance), "guidance", guidance, "a number that float32 has; 1 is none")
        timesteps = self.decoder.stage.diffusion.timesteps
        is_count = isinstance(steps, int | np.integer) and 2 <= steps <= timesteps
        _require(is_count, "steps", steps, f"an integer in [2, {timesteps}], the timesteps of training")
        is_scale = eta is None or (isinstance(eta, float | int) and math.isfinite(eta) and 0 <= eta <= 1)
        _require(is_scale, "eta", eta, "in [0, 1], or None for ancestral sampling")
        _require(isinstance(batch_size, int | np.integer) and batch_size >= 1, "batch_size", batch_size, "at least 1")

    @staticmethod
    def _check_texts(texts: Sequence, name: str) -> None:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"{name} must be a list of strings, not one {type(texts).__name__}: write [text]")
        if not len(texts):
            raise ValueError(f"{name} must be a list of at least one")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{index}] is a {type(text).__name__}, {text!r}; it must be a string")


def slerp(
    a: Float32[np.ndarray, "dim"], b: Float32[np.ndarray, "dim"], fraction: float | int
) -> Float32[np.ndarray, "dim"]:
    """Interpolates between vectors: spherically between their directions, linearly between their lengths."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    u, v = (np.asarray(x, np.float64) / max(length, 1e-12) for x, length in zip((a, b), lengths, strict=True))
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    if np.sin(angle) < 1e-6:  # equal directions, or opposite ones, between which there is no shortest way
        direction = (1 - fraction) * u + fraction * v
    else:
        direction = (np.sin((1 - fraction) * angle) * u + np.sin(fraction * angle) * v) / np.sin(angle)
    return (direction * ((1 - fraction) * lengths[0] + fraction * lengths[1])).astype(np.float32)


def _describe(part: Any) -> Any:
    """Lists the options of the networks and diffusion processes of a stage."""
    options = getattr(part, "options", part)
    if isinstance(options, Options) or not dataclasses.is_dataclass(options):
        return options
    return [_describe(getattr(part, field.name)) for field in dataclasses.fields(part)]


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} must be {allowed}")

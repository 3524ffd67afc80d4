"""A second stage for inference: samples images from conditions, completes images, and computes likelihoods."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float32, Int, Int32, UInt8
from tqdm import tqdm

from nn_jax import code_transformer
from nn_jax.code_transformer import CodeTransformer
from nn_jax.decoding import Sampling, has_filters
from nn_jax.mixed_precision import round_weights
from train_jax import inference
from train_jax.compute import TransformerCompute
from train_jax.data.images import Preprocess, decode
from train_jax.errors import ConfigError, LoadError, in_float32
from train_jax.weights.layout import flatten, hash_arrays
from vqgan_jax.stage2 import model as model_lib
from vqgan_jax.stage2 import sampling
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.model import CodeTransformerOptions
from vqgan_jax.stage2.rerank import clip_scores, open_reranker
from vqgan_jax.vqgan import ImageInput, ImageInputs, Vqgan

LIKELIHOOD = "likelihood"  # value of `rerank` for ranking by log-probability
_GREY = 127  # pixel value of unfinished parts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawing:
    """Sampled images with codes and scores. With reranking, samples of a condition are sorted by descending score.

    Attributes:
      images: [conditions, samples, H, W, 3].
      codes: codes of the images.
      log_probs: log-likelihood (natural logarithm) of the sampled codes given the condition and preceding codes, by the
        model without guidance, temperature or filters.
      scores: scores of the ranking, or None.
      samples: index of each sample of a condition before the ranking.
    """

    images: UInt8[np.ndarray, "p n H W 3"]
    codes: Int32[np.ndarray, "p n h w"]
    log_probs: Float32[np.ndarray, "p n"]
    scores: Float32[np.ndarray, "p n"] | None
    samples: Int[np.ndarray, "p n"]

    def select(self, row: int) -> "Drawing":
        """Returns the drawing of one condition."""
        return jax.tree.map(lambda x: x[row : row + 1], self)


@dataclasses.dataclass(frozen=True, eq=False)
class CodeGenerator:
    """A second stage for inference, with the VQGAN that decodes its codes.

    Attributes:
      module: Flax module, see `nn_jax.code_transformer`.
      variables: weights on the devices of this host.
      condition: encoder of conditions to tokens.
      vqgan: decoder of codes to images.
      size: side of the training images in pixels.
      fingerprint: SHA-256 of the weights of both stages, the options and the meaning of conditions.
      name: source of the weights, for messages.
    """

    module: CodeTransformer
    variables: Any
    condition: Condition
    vqgan: Vqgan
    size: int
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls,
        options: CodeTransformerOptions,
        params: Mapping,
        condition: Condition,
        vqgan: Vqgan,
        size: int,
        name: str,
        compute: TransformerCompute | None = None,
    ) -> "CodeGenerator":
        """Builds a model from options and weights. Raises LoadError if options and weights are inconsistent."""
        grid = (size // vqgan.factor,) * 2
        try:
            module = model_lib.build(options, condition, vqgan.num_codes, grid, compute)
        except ConfigError as error:
            raise LoadError(f"{name} describes no model that can be built: {error}") from error
        # On the host: a program would unroll stacked weights on the device, where they would need memory twice.
        module, params = code_transformer.unroll_for_decoding(module, params)
        model_lib.check_shapes(module, params, name)
        digest = hashlib.sha256(f"{vqgan.fingerprint} {condition.fingerprint} {size}".encode())
        digest.update(json.dumps(options.identity(), sort_keys=True).encode())
        hash_arrays(digest, flatten(params))
        variables = inference.on_devices(round_weights(params, module.dtype))
        return cls(module, variables, condition, vqgan, size, digest.hexdigest(), name)

    @property
    def dtype(self) -> str:
        """Precision of the computation of the codes: float32 or bfloat16."""
        return jnp.dtype(self.module.dtype).name

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of the codes of a training image."""
        return self.module.grid

    def generate(self, conditions: Sequence | None = None, n: int = 1, **options) -> UInt8[np.ndarray, "p n H W 3"]:
        """Samples images from conditions and returns the images only; arguments are as in `draw`."""
        return self.draw(conditions, n, **options).images

    def draw(
        self,
        conditions: Sequence | None = None,
        n: int = 1,
        *,
        seed: int | Sequence[int] | np.ndarray = 0,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        guidance: float | int = 1.0,
        size: tuple[int, int] | None = None,
        stride: int | None = None,
        init_image: ImageInput | None = None,
        keep: np.ndarray | None = None,
        rerank: Any = None,
        best: int | None = None,
        first: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 64,
        int8_cache: bool = False,
        progress: bool = True,
        preview: Callable[[int, int, np.ndarray], None] | None = None,
        preview_rows: int | None = None,
    ) -> Drawing:
        """Samples images from conditions; returns images, codes, log-probabilities and scores.

        Args:
          conditions: classes or texts; None for samples without condition. A repeated condition gets the additional samples
            of a larger `n`.
          n: number of samples per condition.
          seed: random seed, 0 to 2^32 - 1, or one for each condition. Sample i of a condition does not depend on other
            conditions or `batch_size`.
          temperature, top_k, top_p, guidance: see `nn_jax.decoding.Sampling`.
          size: (height, width) in pixels, at least the training size; larger images are sampled by a sliding window.
          stride: stride of the window in codes; 1 gives each code the largest context; None: half a window.
          init_image, keep: an image of this size, and a mask bool [rows, columns] of its codes to keep. Kept codes influence
            only later codes in reading order.
          rerank: ranking of the samples: a CLIP or its path, by similarity of image and text; or "likelihood".
          best: number of best samples to return.
          first: index of the first sample of each condition; None: 0, or for a repeated condition the next one.
          batch_size: maximum number of samples per batch.
          int8_cache: whether keys and values are rounded to 8 bits, which halves the memory of a bfloat16 cache; samples
            differ from those of an exact cache.
          progress: whether to show a progress bar.
          preview: callback `(index of the batch's first sample, finished rows of codes, images uint8 [b, H, W, 3])` during
            sampling. Samples are numbered condition by condition; unfinished parts are grey.
          preview_rows: rows of codes between two calls of `preview`; None: a quarter of a window.

        Raises ValueError for invalid arguments and BrokenSample for an unreadable `init_image`.
        """
        conditions = [self.condition.none] if conditions is None else conditions
        self._check_arguments(conditions, n, seed, temperature, top_k, top_p, guidance, batch_size, best, rerank)
        conditions = list(conditions)
        tokens = self.condition.encode(conditions)
        reranker = rerank if rerank is None or rerank == LIKELIHOOD else open_reranker(rerank, self.dtype)
        grid, stride = self._output_grid(size), self._check_stride(stride)
        known_codes, known_mask = self._known_codes(grid, init_image, keep)
        chunk_rows = -(-self.grid[0] // sampling.SEGMENTS) if preview_rows is None else preview_rows
        if not 1 <= chunk_rows <= self.grid[0]:
            raise ValueError(f"preview_rows = {preview_rows} must be in [1, {self.grid[0]}], the rows of codes")
        settings = Sampling(np.float32(temperature), np.int32(top_k or 0), np.float32(top_p or 1), np.float32(guidance))
        static = {"filtered": has_filters(top_k or 0, top_p or 1), "guided": guidance != 1}
        first = sampling.first_samples(conditions, n) if first is None else np.asarray(first)
        if first.shape != (len(conditions),) or first.dtype.kind not in "iu" or first.min() < 0:
            raise ValueError(f"first = {first.tolist()} must be {len(conditions)} integers, at least 0")
        seeds = sampling.make_seeds(self.condition, conditions, first, n, seed)
        programs, total = self._int8_programs if int8_cache else self._programs, len(conditions) * n
        codes = np.repeat(known_codes[None], total, axis=0)
        log_probs = np.zeros(total, np.float32)
        condition_index = np.repeat(np.arange(len(conditions), dtype=np.int32), n)
        padded_sizes, group = self._padded_sizes(len(conditions), n, batch_size)
        windows = list(sampling.iterate_windows(grid, self.grid, stride, known_mask))
        chunks = sum(-(-(self.module.length - w.prefix) // (chunk_rows * self.grid[1])) for w in windows)
        with tqdm(total=total * chunks, unit="chunk", desc="draw", disable=not progress) as bar:
            for start in range(0, total, batch_size):
                batch = slice(start, min(start + batch_size, total))
                start_condition, last = condition_index[batch][[0, -1]]
                decoder = _Decoder(
                    self, programs, settings, static, tokens[start_condition : last + 1],
                    condition_index[batch] - start_condition, seeds.reshape(-1, 3)[batch], padded_sizes, group,
                )  # fmt: skip
                done = known_mask.copy()
                for nats in decoder.decode(codes[batch], done, windows, chunk_rows):
                    log_probs[batch] = nats
                    bar.update(batch.stop - batch.start)
                    if preview is not None:
                        preview(start, int(done.all(axis=1).cumprod().sum()), self._decode_unfinished(codes[batch], done))
        images = self.vqgan.decode_uint8(codes)
        codes = codes.reshape(len(conditions), n, *grid)
        images = images.reshape(len(conditions), n, *images.shape[1:])
        log_probs = log_probs.reshape(len(conditions), n)
        order, scores = np.tile(np.arange(n), (len(conditions), 1)), None
        if reranker is not None:
            scores = log_probs if reranker == LIKELIHOOD else clip_scores(reranker, conditions, images)
            order = np.argsort(-scores, axis=1, kind="stable")[:, : best or n]
            scores = np.take_along_axis(scores, order, axis=1)
        rows = np.arange(len(conditions))[:, None]
        samples = np.take_along_axis(seeds[..., 2].astype(int), order, axis=1)
        return Drawing(images[rows, order], codes[rows, order], log_probs[rows, order], scores, samples)

    def stream(
        self,
        conditions: Sequence,
        n: int = 1,
        *,
        only: Sequence[int] | None = None,
        batch_size: int = 64,
        progress: bool = True,
        **options,
    ) -> Iterator[tuple[int, Drawing]]:
        """Samples images from any number of conditions in constant memory; yields `(index of the condition, drawing)`.

        Args:
          conditions, n, batch_size, **options: as in `draw`, except `first`. The images are those of `draw`.
          only: indices of the conditions to sample, such as those that an interrupted call did not reach; None: all.

        All calls of the same n and batch size use the same programs.
        """
        self._check_conditions(conditions)
        if options.get("rerank") not in (None, LIKELIHOOD):
            options["rerank"] = open_reranker(options["rerank"], self.dtype)  # once
        options |= {"only": only, "batch_size": batch_size, "progress": progress}
        yield from stream_drawings(self.draw, conditions, n, **options)

    def logits(
        self, condition_tokens: np.ndarray, image_codes: Int[np.ndarray, "b ..."]
    ) -> tuple[Float32[np.ndarray, "b c1 t"] | None, Float32[np.ndarray, "b l k"]]:
        """Computes the logits of each token given the preceding tokens; see `nn_jax.code_transformer.CodeTransformer`.

        Args:
          condition_tokens: result of `condition.encode`.
          image_codes: codes [b, h, w], or [b, L] in reading order.

        Raises ValueError for unknown tokens or codes.
        """
        null = self.condition.null
        tokens, codes = np.asarray(condition_tokens, null.dtype), np.asarray(image_codes, np.int32)
        codes = codes.reshape(len(codes), -1)
        for name, x, shape, size in (
            ("condition_tokens", tokens, (len(codes), *null.shape), self.condition.vocabulary_size),
            ("image_codes", codes, (len(tokens), self.module.length), self.vqgan.num_codes),
        ):
            if x.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, not {list(x.shape)}")
            if size is not None and x.size and not (x.min() >= 0 and x.max() < size):
                raise ValueError(f"{name} {x.min()} to {x.max()}: this model has 0 to {size - 1}")
        condition_logits, code_logits = self._logits(self.variables, tokens, codes)
        return None if condition_logits is None else np.asarray(condition_logits), np.asarray(code_logits)

    def score(
        self, conditions: Sequence, images: ImageInputs, batch_size: int = 32
    ) -> Float32[np.ndarray, "images conditions"]:
        """Computes the log-likelihood of each image given each condition; the argmax over conditions classifies images.

        Args:
          images: list of images of any sizes, resized and cropped to `size` x `size`; or one array [n, size, size, 3], see
            `Vqgan.encode`.
        """
        self._check_conditions(conditions)
        tokens, codes = self.condition.encode(list(conditions)), self._encode_images(images)
        codes = codes.reshape(len(codes), -1)
        row = tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in (tokens, codes))

        def rows(start: int, stop: int):
            pairs = np.arange(start, stop)
            return tokens[pairs % len(tokens)], codes[pairs // len(tokens)]

        count = len(tokens) * len(codes)
        scores = inference.batched(self._scores, self.variables, rows, count, row, batch_size)
        return scores.reshape(len(codes), len(tokens))

    # -----------------------------------------------------------------------------------------------------------------

    def _padded_sizes(self, conditions: int, n: int, batch_size: int) -> tuple[tuple[int, int], int]:
        """Returns the numbers of conditions and of samples of a batch, and that of consecutive samples of one condition."""
        prompts, rows = sampling.padded_sizes(conditions, n, batch_size)
        devices = self._mesh.size
        rows_per_device = -(-rows // devices)
        group = sampling.group_size(conditions, n, batch_size, rows_per_device)
        return (prompts, rows_per_device * devices), group

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        return jax.tree.leaves(self.variables)[0].sharding.mesh

    @functools.cached_property
    def _programs(self) -> sampling.Programs:
        return sampling.compile_programs(self.module)

    @functools.cached_property
    def _int8_programs(self) -> sampling.Programs:
        return sampling.compile_programs(self.module.clone(cache_dtype=jnp.int8))

    @functools.cached_property
    def _logits(self) -> Callable:
        return jax.jit(lambda params, tokens, codes: self.module.apply({"params": params}, tokens, codes))

    @functools.cached_property
    def _scores(self) -> Callable:
        def score(params, rows):
            tokens, codes = rows
            logits = self.module.apply({"params": params}, tokens, codes)[1][..., self.module.code_offset :]
            log_probs = jax.nn.log_softmax(logits)
            return jnp.take_along_axis(log_probs, codes[..., None], axis=2).sum(axis=(1, 2))

        return jax.jit(score)

    def _decode_unfinished(
        self, codes: Int32[np.ndarray, "b h w"], done: Bool[np.ndarray, "h w"]
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Decodes unfinished images, which are grey where codes are not `done`."""
        images = self.vqgan.decode_uint8(codes)
        images[:, ~np.kron(done, np.ones((self.vqgan.factor,) * 2, bool))] = _GREY
        return images

    def _encode_images(self, images: ImageInputs) -> Int32[np.ndarray, "n h w"]:
        if not isinstance(images, np.ndarray):
            images = Preprocess(self.size).batch(images)
        if images.shape[1:3] != (self.size, self.size):
            raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels; this model needs {self.size}")
        return self.vqgan.encode(images)

    def _known_codes(
        self, grid: tuple[int, int], init_image, keep
    ) -> tuple[Int32[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """Returns the codes of `init_image` and the mask of codes to keep."""
        if init_image is None and keep is None:
            return np.zeros(grid, np.int32), np.zeros(grid, bool)
        if init_image is None or keep is None:
            raise ValueError("init_image and keep belong together: an image, and the mask of its codes to keep")
        keep = np.asarray(keep, bool)
        if keep.shape != grid:
            raise ValueError(f"keep has shape {list(keep.shape)}; an image has {list(grid)} codes")
        if grid == self.grid:
            codes = self._encode_images([init_image])
        else:
            pixels = init_image if isinstance(init_image, np.ndarray) else np.asarray(decode(init_image))
            codes = self.vqgan.encode(pixels[None])
        if codes.shape[1:] != grid:
            raise ValueError(f"init_image has codes {list(codes.shape[1:])}; the image to sample has {list(grid)}")
        return codes[0], keep

    def _output_grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        factor = self.vqgan.factor
        if size is None or tuple(size) == (self.size, self.size):
            return self.grid
        if self.condition.kind == "map":
            raise ValueError(f"size = {tuple(size)}: a map conditions images of {self.size} x {self.size} pixels only")
        if any(side < self.size or side % factor for side in size):
            raise ValueError(
                f"size = {tuple(size)}: height and width must be at least {self.size}, the training size, and "
                f"divisible by {factor}"
            )
        return size[0] // factor, size[1] // factor

    def _check_stride(self, stride: int | None) -> int:
        stride = max(self.grid[0] // 2, 1) if stride is None else stride
        if not 1 <= stride <= min(self.grid):
            raise ValueError(f"stride = {stride} must be in [1, {min(self.grid)}], the side of a window in codes")
        return stride

    def _check_conditions(self, conditions) -> None:
        if isinstance(conditions, str | int) or not isinstance(conditions, Sequence | np.ndarray):
            raise TypeError(f"conditions must be a list, not one {type(conditions).__name__}: write [value]")
        if not len(conditions):
            raise ValueError("conditions must be a list of at least one")

    def _check_arguments(self, conditions, n, seed, temperature, top_k, top_p, guidance, batch_size, best, rerank) -> None:
        self._check_conditions(conditions)

        def require(holds: bool, name: str, value, allowed: str) -> None:
            if not holds:
                raise ValueError(f"{name} = {value} must be {allowed}")

        require(isinstance(n, int | np.integer) and n >= 1, "n", n, "an integer, at least 1")
        seeds = np.asarray(seed)
        are_integers = seeds.dtype.kind in "iu" and seeds.shape in ((), (len(conditions),))
        is_seed = are_integers and bool(((seeds >= 0) & (seeds < 2**32)).all())
        require(is_seed, "seed", seed, "an integer in [0, 2^32), or one for each condition")
        require(temperature >= 0 and in_float32(temperature), "temperature", temperature, "0 or more, and finite in float32")
        num_codes = self.module.num_codes
        require(top_k is None or 1 <= top_k <= num_codes, "top_k", top_k, f"in [1, {num_codes}], or None for all codes")
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "in (0, 1], or None for all codes")
        require(in_float32(guidance), "guidance", guidance, "a number that float32 has; 1 is none")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        if guidance != 1 and not self.condition.droppable:
            raise ValueError(
                f"guidance = {guidance}: {self.name} was not trained without {self.condition.kind}, which guidance "
                "requires. Leave guidance at 1, or train with condition_dropout above 0"
            )
        if guidance != 1 and self.condition.vocabulary_size == 1:
            raise ValueError(f"guidance = {guidance}: {self.name} has no conditions, so guidance must be 1")
        if best is not None:
            require(1 <= best <= n, "best", best, f"in [1, n = {n}]")
            if rerank is None:
                raise ValueError("best needs a ranking: set rerank")
        if rerank is not None and rerank != LIKELIHOOD and self.condition.kind != "text":
            raise ValueError(f"rerank = {rerank!r}: CLIP needs texts, this model has none; use 'likelihood'")


def stream_drawings(
    draw: Callable,
    conditions: Sequence,
    n: int = 1,
    *,
    only: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: bool = True,
    **options,
) -> Iterator[tuple[int, Any]]:
    """Samples images from any number of conditions in constant memory; yields `(index of the condition, drawing)`.

    Args:
      draw: `draw(conditions, n, first=…, batch_size=…, progress=…, **options)`, whose result has `select(row)`.
      only: indices of the conditions to sample; None: all.
    """
    conditions, only = list(conditions), list(range(len(conditions)) if only is None else only)
    first = sampling.first_samples(conditions, n)
    size = min(max(1, batch_size // n), len(conditions))  # conditions of a batch
    with tqdm(total=len(only) * n, unit="image", desc="draw", disable=not progress) as bar:
        for start in range(0, len(only), size):
            indices = only[start : start + size]
            padded = indices + indices[-1:] * (size - len(indices))  # so that the last batch is no other program
            options |= {"first": first[padded], "batch_size": batch_size, "progress": False}
            drawing = draw([conditions[i] for i in padded], n, **options)
            for row, index in enumerate(indices):
                yield index, drawing.select(row)
            bar.update(len(indices) * n)


@dataclasses.dataclass
class _Decoder:
    """Decoder of one batch of samples, window by window.

    Attributes:
      static: `filtered` and `guided` of `sampling.Programs.decode_chunk`.
      tokens: tokens of the conditions in this batch; sample i belongs to condition `condition_index[i]`.
      padded_sizes: numbers of conditions and of samples for which the programs are compiled.
      group: number of consecutive samples of one condition; see `sampling.group_size`.
    """

    generator: CodeGenerator
    programs: sampling.Programs
    settings: Sampling
    static: dict[str, Any]
    tokens: np.ndarray
    condition_index: Int[np.ndarray, "b"]
    seeds: np.ndarray
    padded_sizes: tuple[int, int]
    group: int

    def decode(
        self,
        codes: Int32[np.ndarray, "b h w"],
        done: Bool[np.ndarray, "h w"],
        windows: Sequence[sampling.Window],
        chunk_rows: int,
    ) -> Iterator[Float32[np.ndarray, "b"]]:
        """Fills `codes` and `done` in place; yields the accumulated log-probabilities after each chunk of rows."""
        module, variables, programs, count = self.generator.module, self.generator.variables, self.programs, len(codes)
        height, width = module.grid
        all_positions = np.arange(done.size, dtype=np.int32).reshape(done.shape)
        log_probs = np.zeros(count, np.float32)
        chunk = chunk_rows * width
        with jax.set_mesh(self.generator._mesh):
            for window in windows:
                if window.prefix == module.length:
                    continue
                area = np.s_[window.top : window.top + height, window.left : window.left + width]
                window_codes = codes[:, *area].reshape(count, -1)
                positions = all_positions[area].reshape(-1)
                prefixes, (logits, caches) = self._prefill(window_codes[:, : window.prefix])
                for start in range(window.prefix, module.length, chunk):
                    part = slice(start, min(start + chunk, module.length))
                    known = window.known[part.start - window.prefix : part.stop - window.prefix]
                    requests = sampling.Requests(
                        self._shard_requests(self.seeds),
                        positions[part],
                        self._shard_requests(window_codes[:, part]),
                        self._shard_requests(np.broadcast_to(known, (count, len(known)))),
                    )
                    room = sampling.segment_end(part.stop, module.length) - window.prefix
                    sampling.make_room(caches, room)
                    sampled, nats, (logits, caches) = programs.decode_chunk(
                        variables, self.settings, prefixes, (logits, caches), requests, np.int32(start), **self.static
                    )
                    window_codes[:, part] = np.asarray(sampled)[:count]
                    log_probs = log_probs + np.where(known, 0, np.asarray(nats)[:count]).sum(axis=1)
                    codes[:, *area] = window_codes.reshape(count, height, width)
                    done[area][: part.stop // width] = True
                    yield log_probs

    def _prefill(self, prefix: Int32[np.ndarray, "b k"]):
        """Computes prefixes and carry after conditions and `prefix`, with one row per sample, or two with guidance.

        Samples of one condition share one prefill, and unconditional rows share one, unless their known codes differ, or a
        dropped condition keeps its padding.
        """
        programs = self.programs
        is_shared = not prefix.size or (prefix == prefix[:1]).all()
        tokens, rows = self.tokens, self.condition_index
        if not is_shared:
            tokens, rows = tokens[rows], np.arange(len(prefix), dtype=np.int32)
        prompts, samples = self.padded_sizes
        rows = _pad_rows(rows, samples)
        tokens = _pad_rows(tokens, prompts if is_shared else samples)
        known = _pad_rows(prefix[:1] if is_shared else prefix, len(tokens))
        groups = rows[:: self.group] if is_shared else rows
        unconditional = None
        if self.static["guided"]:
            nulls = self.generator.condition.drop(tokens)
            is_one = is_shared and len(nulls) == 1
            null_rows = np.full_like(rows, len(tokens)) if is_one else len(tokens) + rows
            null_groups = null_rows[: self.generator._mesh.size] if is_one else len(tokens) + groups  # one on each device
            unconditional = self._shard_rows(null_rows), self._shard_rows(null_groups)
            nulls = nulls if is_one else np.broadcast_to(nulls, tokens.shape)
            tokens, known = np.concatenate([tokens, nulls]), np.concatenate([known, known[: len(nulls)]])
        prefilled = programs.prefill(self.generator.variables, tokens, known)
        return programs.assign(prefilled, self._shard_rows(rows), self._shard_rows(groups), unconditional)

    def _shard_requests(self, x: np.ndarray) -> jax.Array:
        return self._shard_rows(_pad_rows(x, self.padded_sizes[1]))

    def _shard_rows(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, NamedSharding(self.generator._mesh, P("batch")))


def _pad_rows(x: np.ndarray, rows: int) -> np.ndarray:
    """Pads `x` to `rows` rows by repeating its last row."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])

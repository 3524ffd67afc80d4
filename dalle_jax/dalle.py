"""The loaded DALL·E: a small value that draws pictures of prompts, completes pictures, and tells how likely they are."""

import dataclasses
import functools
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float32, Int, Int32, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from dalle_jax import model as model_lib
from dalle_jax import sampling
from dalle_jax.captions import AnyCaptions
from dalle_jax.pretrained import open_checkpoint
from dalle_jax.rerank import fit, open_judge
from nn_jax.decode import Sampling
from train_jax import inference
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError, LoadError, in_float32
from train_jax.weights.layout import flat
from vqgan_jax.vqgan import Picture, Pictures, Vqgan

__all__ = ["Dalle", "Drawing", "LoadError", "load"]
log = logging.getLogger(__name__)

LIKELIHOOD = "likelihood"  # a way to rank
_PREVIEWS = 8  # steps of the progress bar in a picture
_GREY = 127
_MEANINGLESS = ("dropout", "scan", "remat", "dtype")  # options that do not change what a model draws


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Pictures of prompts, and what is known about them. Where they were ranked, the best of each prompt come first.

    Attributes:
      images: [prompts, pictures, H, W, 3].
      codes: their codes.
      log_probs: natural logarithm of the codes' probability given the prompt; of the model itself, without guidance,
        temperature or filters.
      scores: by which they were ranked, or None.
      samples: the number of each among those of its prompt, as it was drawn.
    """

    images: UInt8[np.ndarray, "p n H W 3"]
    codes: Int32[np.ndarray, "p n h w"]
    log_probs: Float32[np.ndarray, "p n"]
    scores: Float32[np.ndarray, "p n"] | None
    samples: Int[np.ndarray, "p n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dalle:
    """A model ready for use. Make one with `load`, or from its parts with `Dalle.assemble`.

    Attributes:
      module: see `dalle_jax.model`.
      variables: on this host's devices.
      captions: turns prompts into tokens.
      vqgan: turns codes into pictures.
      size: side of the pictures.
      fingerprint: SHA-256 of the weights of both stages, the options and the vocabulary.
      name: where it came from, for people.
    """

    module: model_lib.Dalle
    variables: Any
    captions: AnyCaptions
    vqgan: Vqgan
    size: int
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls, options: ConfigDict, params: Mapping, captions: AnyCaptions, vqgan: Vqgan, size: int, name: str
    ) -> "Dalle":
        """The model of these options and weights; LoadError if they do not belong together."""
        grid = (size // vqgan.factor,) * 2
        try:
            module = model_lib.build(options, captions.size, vqgan.codes, grid)
        except ConfigError as error:
            raise LoadError(f"{name} describes no model that can be built: {error}") from error
        wanted = flatten_dict(model_lib.shapes(module), sep="/")
        found = {key: np.shape(x) for key, x in flatten_dict(dict(params), sep="/").items()}
        if wanted != found:
            wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            lines = [f"{k}: {found.get(k, 'missing')}, where {wanted.get(k, 'nothing')} belongs" for k in wrong[:8]]
            raise LoadError(f"{name}: weights and configuration belong to different models:\n  " + "\n  ".join(lines))
        digest = hashlib.sha256(f"{vqgan.fingerprint} {captions.fingerprint} {size}".encode())
        meaning = {key: value for key, value in options.to_dict().items() if key not in _MEANINGLESS}
        digest.update(json.dumps(meaning, sort_keys=True).encode())
        for key, leaf in sorted(flat(params).items()):
            digest.update(f"{key} {leaf.dtype} {list(leaf.shape)}\n".encode() + np.ascontiguousarray(leaf).tobytes())
        variables = inference.on_devices(params)
        return cls(module, variables, captions, vqgan, size, digest.hexdigest(), name)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's codes."""
        return self.module.grid

    def generate(self, prompts: Sequence[str], n: int = 1, **options) -> UInt8[np.ndarray, "p n H W 3"]:
        """Pictures of prompts; arguments as in `draw`."""
        return self.draw(prompts, n, **options).images

    def draw(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        guidance: float | int = 1.0,
        init_image: Picture | None = None,
        keep: np.ndarray | None = None,
        rerank: Any = None,
        best: int | None = None,
        batch_size: int = 64,
        progress: bool = True,
        preview: Callable[[int, int, np.ndarray], None] | None = None,
        preview_rows: int | None = None,
    ) -> Drawing:
        """Pictures of prompts, and what is known about them.

        Args:
          prompts: sentences; "" draws what the model draws when told nothing. Too long ones are cut, and the log says so.
            A sentence that occurs again gets other pictures: those that `n` would have gone on to.
          n: pictures of each.
          seed: 0 to 2^32 - 1. Picture i of a prompt is the same whatever else is drawn, in batches of whatever size.
          temperature, top_k, top_p, guidance: see `nn_jax.decode.Sampling`; guidance goes beyond the prompt.
          init_image, keep: a picture, and bool [rows, columns]: the codes of it that are to stay. A code knows what comes
            before it in reading order; kept ones behind it do not change it.
          rerank: puts the best first: a CLIP or the path of one, by how well a picture fits its prompt; or "likelihood".
          best: return the so many best alone.
          batch_size: pictures at most that are drawn together.
          progress: show a bar.
          preview: called as pictures grow: `(number of the first, rows of codes done, uint8 [b, H, W, 3])`; pictures are
            numbered prompt by prompt, what is not drawn yet is grey. It changes no picture.
          preview_rows: rows of codes between two calls; None: an eighth of the picture.

        Raises ValueError for arguments that cannot be, BrokenSample for an `init_image` that cannot be read.
        """
        self._check(prompts, n, seed, temperature, top_k, top_p, guidance, batch_size)
        prompts = list(prompts)
        judge = self._judge(rerank, best, n)
        kept, keep = self._kept(init_image, keep)
        rows_at_once = max(1, self.grid[0] // _PREVIEWS) if preview_rows is None else preview_rows
        if not 1 <= rows_at_once <= self.grid[0]:
            raise ValueError(f"preview_rows = {preview_rows} must be in [1, {self.grid[0]}], the rows of codes")
        if preview is None and not progress:
            rows_at_once = self.grid[0]
        settings = Sampling(np.float32(temperature), np.int32(top_k or 0), np.float32(top_p or 1), np.float32(guidance))
        most = self._most(top_k, top_p)
        hashes = [zlib.crc32(prompt.encode()) for prompt in prompts]
        begin = np.array([n * prompts[:place].count(prompt) for place, prompt in enumerate(prompts)])
        codes = np.zeros((len(prompts), n, self.module.length), np.int32)
        log_probs = np.zeros((len(prompts), n), np.float32)
        text = self._text(prompts)
        total = len(prompts) * n
        with tqdm(total=total * self.grid[0], unit="row", desc="draw", disable=not progress) as bar:
            for some, samples in sampling.parts(len(prompts), n, batch_size):
                here = [(prompt, sample) for prompt in some for sample in samples]
                seeds = np.array([(seed, hashes[p], begin[p] + sample) for p, sample in here], np.uint32)
                which = np.array([prompt - some.start for prompt, _ in here], np.int32)
                part = (slice(some.start, some.stop), slice(samples.start, samples.stop))
                shape = (len(some), len(samples))
                done = 0
                for row, drawn, nats in self._decode(
                    text[some.start : some.stop], which, seeds, settings, kept, keep, most, guidance != 1, rows_at_once
                ):
                    codes[(*part, slice(drawn.shape[1]))] = drawn.reshape(*shape, -1)
                    log_probs[part] = nats.reshape(shape)
                    bar.update(len(here) * (row - done))
                    done = row
                    if preview is not None:
                        preview(some.start * n + samples.start, row, self._unfinished(drawn, row))
        images = self._pictures(codes.reshape(total, *self.grid)).reshape(len(prompts), n, self.size, self.size, 3)
        codes = codes.reshape(len(prompts), n, *self.grid)
        scores = None
        order = np.broadcast_to(np.arange(n), (len(prompts), n))
        if judge is not None:
            scores = log_probs if judge == LIKELIHOOD else fit(judge, prompts, images)
            order = np.argsort(-scores, axis=1, kind="stable")[:, : best or n]
            scores = np.take_along_axis(scores, order, axis=1)
        rows = np.arange(len(prompts))[:, None]
        numbers = begin[:, None] + order
        return Drawing(images[rows, order], codes[rows, order], log_probs[rows, order], scores, numbers)

    def logits(
        self, text_ids: Int[np.ndarray, "b n"], image_codes: Int[np.ndarray, "b l"]
    ) -> tuple[Float32[np.ndarray, "b n1 t"], Float32[np.ndarray, "b l k"]]:
        """What the model says of each token, given those before it: of text tokens 1 to N - 1, and of the codes.

        Args:
          text_ids: as `captions.encode` gives them.
          image_codes: in reading order, [b, L], or [b, h, w].

        Raises ValueError for tokens or codes that do not exist.
        """
        text, codes = np.asarray(text_ids, np.int32), np.asarray(image_codes, np.int32)
        codes = codes.reshape(len(codes), -1)
        for name, x, shape, size in (
            ("text_ids", text, (len(codes), self.module.text_length), self.captions.size),
            ("image_codes", codes, (len(text), self.module.length), self.vqgan.codes),
        ):
            if x.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, not {list(x.shape)}")
            if x.size and not (x.min() >= 0 and x.max() < size):
                raise ValueError(f"{name} {x.min()} to {x.max()}: this model has 0 to {size - 1}")
        text_logits, code_logits = self._logits(self.variables, text, codes)
        return np.asarray(text_logits), np.asarray(code_logits)

    def score(
        self, prompts: Sequence[str], images: Pictures, batch_size: int = 32
    ) -> Float32[np.ndarray, "images prompts"]:
        """Natural logarithm of each picture's probability given each prompt; its largest in a row classifies the picture.

        Args:
          images: pictures of any sizes, brought to `size` x `size`; or one array [n, size, size, 3] as for `Vqgan.encode`.
        """
        self._check_prompts(prompts)
        text, codes = self._text(prompts), self._codes(images)
        codes = codes.reshape(len(codes), -1)
        row = (
            jax.ShapeDtypeStruct((text.shape[1],), np.int32),
            jax.ShapeDtypeStruct((codes.shape[1],), np.int32),
        )

        def rows(start: int, stop: int):
            pairs = np.arange(start, stop)
            return text[pairs % len(text)], codes[pairs // len(text)]

        count = len(text) * len(codes)
        found = inference.batched(self._scores, self.variables, rows, count, row, batch_size)
        return found.reshape(len(codes), len(text))

    # -----------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _generation(self) -> sampling.Programs:
        return sampling.compile_programs(self.module)

    @functools.cached_property
    def _logits(self) -> Callable:
        return jax.jit(lambda params, text, codes: self.module.apply({"params": params}, text, codes))

    @functools.cached_property
    def _scores(self) -> Callable:
        def score(params, rows):
            text, codes = rows
            found = self.module.apply({"params": params}, text, codes)[1][..., self.module.first_code :]
            log_probs = jax.nn.log_softmax(found)
            return jnp.take_along_axis(log_probs, codes[..., None], axis=2).sum(axis=(1, 2))

        return jax.jit(score)

    def _decode(self, text, which, seeds, settings, kept, keep, most, guided, rows_at_once):
        """As pictures of the prompts `text[which]` grow: `(rows done, codes so far [b, …], their log-probabilities [b])`."""
        programs = self._generation
        mesh = jax.tree.leaves(self.variables)[0].sharding.mesh
        count = len(which)
        padded = -(-count // mesh.size) * mesh.size

        def split(x):
            full = np.concatenate([x, np.repeat(x[-1:], padded - count, axis=0)])
            return jax.device_put(full, NamedSharding(mesh, P("batch")))

        if guided:
            text = np.concatenate([text, self._nothing])
        step = rows_at_once * self.grid[1]
        found, nats = [], 0.0
        with jax.set_mesh(mesh):
            carry = programs.expand(programs.prefill(self.variables, text), split(which), guided=guided)
            for first in range(0, self.module.length, step):
                length = min(step, self.module.length - first)
                part = np.s_[None, first : first + length]
                rows = sampling.Rows(
                    split(seeds),
                    split(np.repeat(kept[part], count, axis=0)),
                    split(np.repeat(keep[part], count, axis=0)),
                )
                codes, log_probs, carry = programs.advance(
                    self.variables, settings, carry, rows, np.int32(first), length=length, most=most, guided=guided
                )
                found.append(np.asarray(codes)[:count])
                nats = nats + np.asarray(log_probs)[:count].sum(axis=1)
                yield (first + length) // self.grid[1], np.concatenate(found, axis=1), nats

    def _pictures(self, codes: Int32[np.ndarray, "b h w"]) -> UInt8[np.ndarray, "b H W 3"]:
        return np.round(255 * self.vqgan.decode(codes)).astype(np.uint8)

    def _unfinished(self, codes: Int32[np.ndarray, "b l"], rows: int) -> UInt8[np.ndarray, "b H W 3"]:
        """Pictures of which the first `rows` rows are known, the rest grey."""
        whole = np.zeros((len(codes), self.module.length), np.int32)
        whole[:, : codes.shape[1]] = codes
        pictures = self._pictures(whole.reshape(-1, *self.grid))
        pictures[:, rows * self.vqgan.factor :] = _GREY
        return pictures

    @functools.cached_property
    def _nothing(self) -> Int32[np.ndarray, "1 n"]:
        return self.captions.encode([""])

    def _text(self, prompts: Sequence[str]) -> Int32[np.ndarray, "p n"]:
        text, cut = self.captions.encode_flagged(list(prompts))
        if cut.any():
            log.warning(
                "%d of %d prompt(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                cut.sum(), len(cut), self.captions.length, prompts[int(cut.argmax())],
            )  # fmt: skip
        return text

    def _codes(self, images: Pictures) -> Int32[np.ndarray, "n h w"]:
        if not isinstance(images, np.ndarray):
            preprocess = Preprocess(self.size)
            images = np.stack([preprocess.named(x, i) for i, x in enumerate(images)]) if len(images) else self._none()
        if images.shape[1:3] != (self.size, self.size):
            raise ValueError(f"pictures of {images.shape[1]} x {images.shape[2]} pixels; the model knows {self.size}")
        return self.vqgan.encode(images)

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.size, self.size, 3), np.uint8)

    def _kept(self, init_image, keep) -> tuple[Int32[np.ndarray, "l"], Bool[np.ndarray, "l"]]:
        if init_image is None and keep is None:
            return np.zeros(self.module.length, np.int32), np.zeros(self.module.length, bool)
        if init_image is None or keep is None:
            raise ValueError("init_image and keep belong together: the picture, and which of its codes stay")
        keep = np.asarray(keep, bool)
        if keep.shape != self.grid:
            raise ValueError(f"keep is {list(keep.shape)}; a picture has {list(self.grid)} codes")
        return self._codes([init_image]).reshape(-1), keep.reshape(-1)

    def _judge(self, judge, best: int | None, n: int):
        if best is not None and not 1 <= best <= n:
            raise ValueError(f"best = {best} must be in [1, n = {n}]")
        if judge is None:
            if best is not None:
                raise ValueError("best says how many to return; name by `rerank` what makes them the best")
            return None
        return judge if isinstance(judge, str) and judge == LIKELIHOOD else open_judge(judge)

    def _most(self, top_k: int | None, top_p: float | None) -> int:
        """How many codes the program looks at: so that another top_k seldom needs another program, a power of two."""
        size = self.module.size
        if top_k:
            return min(size, 1 << (top_k - 1).bit_length())
        return size if top_p is not None and top_p < 1 else 0

    def _check_prompts(self, prompts) -> None:
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of texts, not one text: write [text]")
        if not len(prompts) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("prompts must be a list of at least one text")

    def _check(self, prompts, n, seed, temperature, top_k, top_p, guidance, batch_size) -> None:
        self._check_prompts(prompts)

        def require(condition: bool, name: str, value, allowed: str) -> None:
            if not condition:
                raise ValueError(f"{name} = {value} must be {allowed}")

        require(isinstance(n, int | np.integer) and n >= 1, "n", n, "a whole number, at least 1")
        whole = isinstance(seed, int | np.integer)
        require(whole and 0 <= seed < 2**32, "seed", seed, "a whole number in [0, 2^32)")
        require(temperature >= 0 and in_float32(temperature), "temperature", temperature, "0 or more, as float32 has it")
        size = self.module.size
        require(top_k is None or 1 <= top_k <= size, "top_k", top_k, f"in [1, {size}], or None for all codes")
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "in (0, 1], or None for all codes")
        require(in_float32(guidance), "guidance", guidance, "a number that float32 has; 1 is none")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        if guidance != 1 and not self.captions.guides:
            raise ValueError(
                f"guidance = {guidance}: {self.name} was never trained on pictures without their caption, so there is "
                "nothing to go beyond. Leave guidance at 1, or train with caption_dropout above 0"
            )


def load(path: str | Path, step: int | None = None) -> Dalle:
    """The model that `path` holds, with its tokenizers of text and of pictures.

    Args:
      path: a run directory (averaged weights where there are any), or a directory of minDALL-E.
      step: of a run directory, the checkpoint; None for the newest readable one.

    Raises LoadError that says what was found if it is none of these, is damaged, or does not belong together.
    """
    found = open_checkpoint(Path(path), step)
    options = model_lib.defaults()
    options.update(found.options)
    params, name = found.read()
    return Dalle.assemble(options, params, found.captions, found.vqgan, found.size, name)

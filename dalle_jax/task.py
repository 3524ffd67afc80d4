"""DALL·E as a task: captions and the codes of a frozen VQGAN, one stream, two losses.

Batches: `text` int32 [B, N], `truncated` bool [B], and `codes` int32 [B, h, w] (computed once, kept on disk) or, with
`codes.cached = False`, `image` uint8 [B, size, size, 3]. The run directory keeps the tokenizers of both kinds beside the
weights and needs the VQGAN that it came from no more.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dalle_jax import evaluators, model
from dalle_jax.captions import AnyCaptions, Captions
from dalle_jax.pretrained.run_directory import TOKENIZER, VQGAN
from train_jax.data import images
from train_jax.data.text import Tokenizer
from train_jax.data.vocabulary import learn
from train_jax.errors import ConfigError
from train_jax.profiling import BACKWARD, dense_flops, transformer_flops
from train_jax.task import Task
from vqgan_jax import codes as codes_lib
from vqgan_jax import vqgan as vqgan_lib


def defaults() -> ConfigDict:
    """DALL·E's part of a config."""
    c = ConfigDict()
    c.vqgan = ConfigDict({"path": "", "size": 0})  # what vqgan_jax.load opens; side of the pictures, 0: its own
    c.codes = ConfigDict()
    c.codes.cached = True  # computed once; False: in every update, of pictures that `augment` has changed
    c.codes.dir = ""  # where they are kept; "": in the run directory
    c.codes.flip = False  # mirrored pictures as well; it makes "left of" untrue
    c.augment = ConfigDict({"scale": (1.0, 1.0), "flip": False})  # without the cache: see clip_jax.task
    c.tokenizer = ConfigDict()
    c.tokenizer.path = ""  # a folder with CLIP's kind of tokenizer, or its file; "": train one on the captions
    c.tokenizer.vocab_size = 16384  # of a trained one
    c.tokenizer.captions = 100_000  # records whose captions a trained one is learnt from
    c.tokenizer.dropout = 0.0  # share of merges left out in training; 0.1 in the paper
    c.model = model.defaults()
    c.loss = ConfigDict({"text": 1 / 8, "image": 7 / 8})  # weights of the two means, per token
    c.caption_dropout = 0.1  # share of captions that are hidden, so that guidance has something to go beyond
    c.evaluators = evaluators.defaults()
    return c


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. ConfigError for options that cannot be, LoadError for a VQGAN that cannot."""
    _check(config)
    vq = codes_lib.open_frozen(config.vqgan.path, workdir / VQGAN if workdir else None)
    size = config.vqgan.size or vq.size
    if size % vq.factor:
        raise ConfigError(f"config.vqgan.size = {size} must be divisible by {vq.factor}, the pixels along a code")
    grid = (size // vq.factor,) * 2
    captions = Captions(_tokenizer(config, workdir), guides=config.caption_dropout > 0)
    module = model.build(config.model, captions.size, vq.codes, grid)
    records = codes_lib.records_of(vq, config.codes, size, workdir)
    empty = captions.encode([""])[0]
    augment = images.Augment(images.Preprocess(size), tuple(config.augment.scale), config.augment.flip)

    def init(rng, batch):
        text, codes = jnp.asarray(empty)[None], jnp.zeros((1, module.length), jnp.int32)
        extra = {}
        if not config.codes.cached:  # filled by `frozen`, not by numbers compiled into this program
            extra = {"vqgan": jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), vq.variables)}
        return {"dalle": module.init(rng, text, codes)["params"]}, extra

    two_losses = stream_loss(module, captions, config)

    def loss(params, extra, batch, rng, step):
        codes = batch["codes"] if config.codes.cached else vq.codes_of(extra["vqgan"], batch["image"])
        value, metrics = two_losses(params["dalle"], batch["text"], codes, rng)
        metrics["truncated"] = jnp.mean(batch["truncated"].astype(jnp.float32))
        return value, (metrics, {})

    def example(record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record["captions"][rng.integers(len(record["captions"]))]
        text, truncated = captions.encode_flagged([caption], config.tokenizer.dropout, rng)
        found = {"text": text[0], "truncated": truncated[0]}
        if config.codes.cached:
            return found | {"codes": codes_lib.choose(record["codes"], rng)}
        return found | {"image": augment(record["image"], rng)}

    def frozen():
        return {}, {"vqgan": jax.tree.map(np.asarray, vq.variables)}

    guessing = float(np.log2(module.first_code + module.size))

    def warnings(metrics: dict[str, float], step: int) -> list[str]:
        if step < max(2 * config.optim.warmup_steps, 100) or metrics["bits_per_code"] < guessing:
            return []
        return [
            f"the model knows less than one that guesses: {metrics['bits_per_code']:.2f} bits a code, where all codes "
            f"alike are {guessing:.2f}. Try a lower optim.lr or more optim.warmup_steps; what is normal: docs/results.md"
        ]

    m = config.model
    stream = module.text_length + module.length - 1
    forward = transformer_flops(stream, m.width, m.depth, m.mlp_ratio)
    forward += dense_flops(module.text_length - 1, m.width, captions.size)
    forward += dense_flops(module.length, m.width, module.first_code + module.size)
    return Task(
        init=init,
        loss=loss,
        example=example,
        evaluators=evaluators.factories(module, captions, vq, records),
        artifacts={TOKENIZER: captions.tokenizer.to_json(), VQGAN: vqgan_lib.to_bytes(vq)},
        records=records if config.codes.cached else None,
        pretrained=None if config.codes.cached else frozen,
        warnings=warnings,
        flops=float(BACKWARD * forward),
    )


def stream_loss(module: model.Dalle, captions: AnyCaptions, config: ConfigDict) -> Callable:
    """`(params, text [B, N], codes [B, h, w], rng) -> (loss, metrics)`: the weighted means over text tokens and codes.

    Text counts from its second token to its end, in captions that are told; pads, which the end foretells, do not.
    """
    empty = captions.encode([""])[0]

    def loss(params, text, codes, rng):
        hide, drop = jax.random.split(rng)
        hidden = jax.random.bernoulli(hide, config.caption_dropout, (len(codes),))
        text = jnp.where(hidden[:, None], empty[None], text)
        codes = codes.reshape(len(codes), -1)
        logits = module.apply({"params": params}, text, codes, False, rngs={"dropout": drop})
        text_nats, image_nats = evaluators.nats(module, logits, text, codes)
        told = captions.counted(text[:, 1:]) & ~hidden[:, None]
        text_loss = jnp.sum(text_nats * told) / jnp.maximum(jnp.sum(told), 1)
        image_loss = jnp.mean(image_nats)
        metrics = {"bits_per_text_token": text_loss / evaluators.NATS, "bits_per_code": image_loss / evaluators.NATS}
        return config.loss.text * text_loss + config.loss.image * image_loss, metrics

    return loss


def _check(config: ConfigDict) -> None:
    def require(condition: bool, path: str, value, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.{path} = {value!r}; it must be {allowed}")

    require(0 <= config.caption_dropout < 1, "caption_dropout", config.caption_dropout, "in [0, 1)")
    require(0 <= config.tokenizer.dropout < 1, "tokenizer.dropout", config.tokenizer.dropout, "in [0, 1)")
    for name, weight in config.loss.items():
        require(weight >= 0, f"loss.{name}", weight, "0 or more")
    require(config.loss.text + config.loss.image > 0, "loss.image", config.loss.image, "positive where loss.text is 0")
    changed = tuple(config.augment.scale) != (1.0, 1.0) or config.augment.flip
    require(
        not (config.codes.cached and changed),
        "augment",
        config.augment.to_dict(),
        "the default with codes.cached = True",
    )
    require(
        config.codes.cached or not config.codes.flip, "codes.flip", True, "False without the cache: see augment.flip"
    )


def _tokenizer(config: ConfigDict, workdir: Path | None) -> Tokenizer:
    length = config.model.text_length
    if workdir is not None and (workdir / TOKENIZER).is_file():
        return Tokenizer.load(workdir / TOKENIZER, length)
    if config.tokenizer.path:
        try:
            return Tokenizer.load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. Name a folder that holds one, or learn one "
                "from the captions: --config.tokenizer.path="
            ) from error
    return learn(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)

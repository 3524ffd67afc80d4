"""How good a second stage is: bits a code on held-out images, and samples to look at."""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nn_jax.decode import Sampling
from train_jax import inference
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError, in_float32
from vqgan_jax.evaluators import First
from vqgan_jax.features import open_features
from vqgan_jax.pictures import grid
from vqgan_jax.prior import sampling
from vqgan_jax.prior.model import CodeTransformer
from vqgan_jax.vqgan import Vqgan

NATS = float(np.log(2))  # in a bit
_SHOWN = 64  # pictures of a sheet


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    c = ConfigDict()
    c.likelihood = ConfigDict({"source": "", "split": "test", "batch_size": 64})
    # labels in turn, where there are some; batch_size: pictures that are drawn together.
    c.samples = ConfigDict({"n": 16, "columns": 8, "seed": 0, "batch_size": 64})
    c.samples.update({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0})
    # features: by which samples are compared with as many pictures of the split, "" for no comparison; vqgan_jax.features.
    c.samples.update({"features": "", "source": "", "split": "test"})
    return c


def requirement(options: ConfigDict) -> Callable[[bool, str, str], None]:
    """`(condition, key, allowed)` that raises ConfigError for an evaluator's option where the condition does not hold."""

    def require(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.evals.….{key} = {options[key]!r}; it must be {allowed}")

    return require


def check_drawing(options: ConfigDict, size: int, unguided: str) -> None:
    """ConfigError for options of evaluators that no pictures can be drawn by.

    Args:
      options: n, seed, batch_size, temperature, top_k, top_p, guidance; perhaps rows, columns.
      size: how many codes there are.
      unguided: why nothing can be guided; "": something can.
    """
    require = requirement(options)
    for key in ("n", "batch_size", "rows", "columns"):
        require(options.get(key, 1) >= 1, key, "at least 1")
    require(0 <= options.seed < 2**32, "seed", "in [0, 2^32)")
    require(in_float32(options.guidance), "guidance", "a number that float32 has; 1 is none")
    require(options.guidance == 1 or not unguided, "guidance", f"1 where {unguided}")
    require(options.temperature >= 0 and in_float32(options.temperature), "temperature", "0 or more, as float32 has it")
    require(0 <= options.top_k <= size, "top_k", f"in [0, {size}], 0 for all codes")
    require(0 < options.top_p <= 1, "top_p", "in (0, 1]")


def factories(
    module: CodeTransformer, vq: Vqgan, records: Callable, example: Callable, shape: tuple[int, int]
) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`; `records` and `example` as the task gives them."""

    def losses(params, extra, batch):
        codes = batch["codes"].reshape(len(batch["codes"]), -1)
        logits = module.apply({"params": params["prior"]}, codes, batch["label"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(axis=1)

    def likelihood(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        # Not before the first evaluation: they may take hours.
        with_codes = functools.cache(lambda: records(source, context.asked_to_stop))

        program = context.jit(losses)

        def evaluate(params, extra):
            coded = with_codes()
            total = 0.0
            batches = context.batches(coded, example, options.batch_size)
            outputs = ((program(params, extra, batch), real) for batch, real in batches)
            for nats, real in inference.overlapped(outputs):
                total += float(np.sum(nats[:real], dtype=np.float64))
            return {"bits_per_code": total / len(coded) / NATS, "images": len(coded)}, {}

        return evaluate

    def samples(options: ConfigDict, context):
        draw = sampling.program(module)
        settings = Sampling(options.temperature, options.top_k, options.top_p, options.guidance)
        most = options.top_k or (module.size if options.top_p < 1 else 0)
        guides = options.guidance == 1 or (module.classes and context.config.label_dropout)
        check_drawing(options, module.size, "" if guides else "config.model.classes or config.label_dropout is 0")
        length, guided = module.length, options.guidance != 1
        batch_size = min(options.batch_size, options.n)
        features = open_features(options.features) if options.features else None
        if features is not None:
            pictured = First(context.source(options.source, options.split), options.n)
            preprocess = Preprocess(shape[0] * vq.factor)
            batches = context.batches(pictured, lambda record, rng: {"image": preprocess(record["image"])}, batch_size)
            images = inference.overlapped((context.whole(batch["image"]), real) for batch, real in batches)
            originals = np.concatenate([features.of(batch)[:real] for batch, real in images])

        def asked(number: int, rng) -> dict[str, np.ndarray]:
            label = number % module.classes if module.classes else -1
            return {"seeds": np.array([options.seed, number], np.uint32), "label": np.int32(label)}

        def sample(params, extra, batch):
            known = jnp.zeros((len(batch["label"]), length), jnp.int32)
            rows = sampling.Rows(batch["seeds"], batch["label"], known[:, :0], known, known > 0)
            codes = draw(params["prior"], settings, rows, np.arange(length), most, guided)
            return codes.reshape(-1, *shape)

        program = context.jit(sample)

        def evaluate(params, extra):
            batches = context.batches(range(options.n), asked, batch_size)
            outputs = ((program(params, extra, batch), real) for batch, real in batches)
            distinct, shown, described = np.zeros(module.size, bool), [], []
            for codes, real in inference.overlapped(outputs):
                distinct[codes[:real]] = True
                pictures = inference.split_over_hosts(vq.decode_uint8, codes)
                shown += list(pictures[: min(real, _SHOWN - len(shown))])
                if features is not None:
                    described.append(features.of(pictures)[:real])
            metrics = {"distinct_codes": float(distinct.sum())}
            if features is not None:
                metrics |= features.compare(np.concatenate(described), originals)
            rows = [shown[i : i + options.columns] for i in range(0, len(shown), options.columns)]
            return metrics, {"samples": grid(rows)}

        return evaluate

    return {"likelihood": likelihood, "samples": samples}

"""How good a second stage is: bits a code on held-out images, and samples to look at."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nn_jax.decode import Sampling
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError
from vqgan_jax.features import open_features
from vqgan_jax.pictures import grid
from vqgan_jax.prior import sampling
from vqgan_jax.prior.model import CodeTransformer
from vqgan_jax.vqgan import Vqgan

NATS = float(np.log(2))  # in a bit


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    c = ConfigDict()
    c.likelihood = ConfigDict({"source": "", "split": "test", "batch_size": 64})
    c.samples = ConfigDict({"n": 16, "columns": 8, "seed": 0})  # labels in turn, where there are some
    c.samples.update({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0})
    # features: by which samples are compared with as many pictures of the split, "" for no comparison; vqgan_jax.features.
    c.samples.update({"features": "", "source": "", "split": "test"})
    return c


def factories(
    module: CodeTransformer, vq: Vqgan, records: Callable, example: Callable, shape: tuple[int, int]
) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`; `records` and `example` as the task gives them."""

    def losses(params, extra, batch):
        codes = batch["codes"].reshape(len(batch["codes"]), -1)
        logits = module.apply({"params": params["prior"]}, codes, batch["label"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(axis=1)

    def likelihood(options: ConfigDict, context):
        coded = records(context.source(options.source, options.split))

        def evaluate(params, extra):
            program = context.jit(losses)
            total = 0.0
            for batch, real in context.batches(coded, example, options.batch_size):
                total += float(np.sum(jax.device_get(program(params, extra, batch))[:real], dtype=np.float64))
            return {"bits_per_code": total / len(coded) / NATS, "images": len(coded)}, {}

        return evaluate

    def samples(options: ConfigDict, context):
        draw = sampling.program(module)
        settings = Sampling(options.temperature, options.top_k, options.top_p, options.guidance)
        most = options.top_k or (module.size if options.top_p < 1 else 0)
        if not 0 <= options.top_k <= module.size:
            raise ConfigError(f"config.evals.….top_k = {options.top_k} must be in [0, {module.size}], 0 for all codes")
        if options.guidance != 1 and not (module.classes and context.config.label_dropout):
            raise ConfigError(
                f"config.evals.….guidance = {options.guidance} must be 1 where config.model.classes or config.label_dropout "
                "is 0: nothing is learnt of images without their label, or of labels"
            )
        labels = np.arange(options.n) % module.classes if module.classes else np.full(options.n, -1)
        length = module.length
        features = open_features(options.features) if options.features else None
        if features is not None:
            pictured = context.source(options.source, options.split)
            preprocess = Preprocess(shape[0] * vq.factor)
            count = min(options.n, len(pictured))
            originals = features.of([np.stack([preprocess(pictured[i]["image"]) for i in range(count)])])

        def whole(params, extra, batch):
            rows = sampling.Rows(
                seeds=np.stack([np.full(options.n, options.seed), np.arange(options.n)], axis=1).astype(np.uint32),
                labels=labels.astype(np.int32),
                before=np.zeros((options.n, 0), np.int32),
                kept=np.zeros((options.n, length), np.int32),
                keep=np.zeros((options.n, length), bool),
            )
            rows = jax.tree.map(jnp.asarray, rows)
            return draw(params["prior"], settings, rows, np.arange(length), most, options.guidance != 1)

        def evaluate(params, extra):
            codes = jax.device_get(context.jit(whole)(params, extra, {}))
            pictures = np.round(255 * vq.decode(codes.reshape(-1, *shape))).astype(np.uint8)
            rows = [list(pictures[i : i + options.columns]) for i in range(0, len(pictures), options.columns)]
            metrics = {"distinct_codes": float(len(np.unique(codes)))}
            if features is not None:
                metrics |= features.compare(features.of([pictures]), originals)
            return metrics, {"samples": grid(rows)}

        return evaluate

    return {"likelihood": likelihood, "samples": samples}

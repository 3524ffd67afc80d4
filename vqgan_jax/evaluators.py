"""How good a VQGAN's reconstructions are: PSNR, SSIM, perceptual distance, use of the codebook, and what they show."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from train_jax import inference
from train_jax.data.images import Preprocess, normalize
from train_jax.data.sources import DataError
from train_jax.data.subset import first
from train_jax.pictures import image_grid
from vqgan_jax import averaging
from vqgan_jax.features import open_features
from vqgan_jax.metrics import psnr, ssim


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    c = ConfigDict()
    # source "": that of the training data. most: the first so many pictures; 0: all. shown: pictures in the samples.
    c.reconstruction = ConfigDict({"source": "", "split": "test", "batch_size": 64, "most": 0, "shown": 8})
    # Reads pictures and their reconstructions by the source's own reader, such as the shapes' oracle.
    c.reading = ConfigDict({"source": "", "split": "test", "batch_size": 64, "most": 500})
    # How far reconstructions are from the originals as a collection. features: a CLIP, or inception:FILE; see
    # vqgan_jax.features.
    c.distribution = ConfigDict({"source": "", "split": "test", "batch_size": 64, "most": 0, "features": ""})
    return c


def factories(module: nn.Module, preprocess: Preprocess, distance) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`, for `train_jax.task.Task`.

    Args:
      distance: the task's perceptual distance (`vqgan_jax.perceptual.Distance`), or None.
    """

    def example(record, rng):
        return {"image": preprocess(record["image"])}

    def reconstruct(params, extra, batch):
        variables = averaging.variables(params, extra)
        x = normalize(batch["image"], preprocess.mean, preprocess.std)
        codes = module.apply(variables, x, method="encode")
        found = jnp.clip(module.apply(variables, codes, method="decode"), -1, 1)
        a, b = (found + 1) / 2, (x + 1) / 2
        values = {"psnr": psnr(a, b), "ssim": ssim(a, b), "l1": jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))}
        if distance is not None:
            one = jax.vmap(lambda f, w: distance.function(extra["perceptual"], f[None], w[None]))
            values["perceptual"] = one(found, x)
        return values, codes, jnp.round(255 * a).astype(jnp.uint8)

    def reconstructed(options: ConfigDict, context, records, params, extra):
        """Batch by batch `(originals, (values, codes, pictures), how many are real)`, on the host."""
        program = context.jit(reconstruct)
        batches = context.batches(records, example, options.batch_size)
        return inference.overlapped(
            (context.whole(batch["image"]), program(params, extra, batch), real) for batch, real in batches
        )

    def reconstruction(options: ConfigDict, context):
        records = first(context.source(options.source, options.split), options.most)

        def evaluate(params, extra):
            sums, counts, shown = {}, np.zeros(module.quantizer.size), []
            for originals, (values, codes, pictures), real in reconstructed(options, context, records, params, extra):
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(np.sum(value[:real], dtype=np.float64))
                counts += np.bincount(codes[:real].ravel(), minlength=len(counts))
                rest = min(real, options.shown - len(shown))
                shown += zip(originals[:rest], pictures[:rest], strict=True)
            p = counts[counts > 0] / counts.sum()
            metrics = {name: value / len(records) for name, value in sums.items()}
            metrics |= {"usage": float(np.mean(counts > 0)), "perplexity": float(np.exp(-np.sum(p * np.log(p))))}
            metrics["images"] = len(records)
            sheet = image_grid([[a for a, _ in shown], [b for _, b in shown]]) if shown else None
            return metrics, {} if sheet is None else {"reconstructions": sheet}

        return evaluate

    def reading(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        if source.read is None:
            raise DataError(f"{source.name} cannot be read by a program: the evaluator 'reading' needs one that can")
        records = first(source, options.most)

        def evaluate(params, extra):
            same = []
            for originals, (_, _, pictures), real in reconstructed(options, context, records, params, extra):
                pairs = zip(originals[:real], pictures[:real], strict=True)
                same += [source.read(a) == source.read(b) for a, b in pairs]
            return {"same": float(np.mean(same)), "images": len(same)}, {}

        return evaluate

    def distribution(options: ConfigDict, context):
        features = open_features(options.features)
        records = first(context.source(options.source, options.split), options.most)

        def evaluate(params, extra):
            described = []  # features alone: pictures of a whole collection need not fit into memory
            for originals, (_, _, pictures), real in reconstructed(options, context, records, params, extra):
                described.append((features.of(pictures)[:real], features.of(originals)[:real]))
            found, wanted = map(np.concatenate, zip(*described, strict=True))
            return features.compare(found, wanted) | {"images": len(records)}, {}

        return evaluate

    return {"reconstruction": reconstruction, "reading": reading, "distribution": distribution}

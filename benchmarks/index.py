"""Measures build time, size and query time of a search index of 100,000 synthetic images.

    python -m benchmarks.index

Images have 64 pixels and both towers have one narrow layer, so that the time of the model is negligible compared with
reading, decoding, storing and searching.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clip_jax import model
from clip_jax.clip import Clip
from clip_jax.options import CLIPOptions
from clip_jax.search import Index, build, search
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer

COUNT, DIM = 100_000, 512


def main() -> None:
    options = CLIPOptions.defaults()
    options.embed_dim = DIM
    options.image.update({"size": 64, "patch": 32, "width": 64, "depth": 1, "heads": 1})
    options.text.update({"width": 64, "depth": 1, "heads": 1})
    tokenizer = Tokenizer.train(["a picture of something"], 600)
    module = model.build(options, tokenizer.vocab_size, tokenizer.eos_id)
    pixels, ids = jnp.zeros((1, 64, 64, 3)), jnp.asarray(tokenizer.encode(["x"]))
    variables = jax.tree.map(np.asarray, jax.jit(lambda key: _init_variables(module, key, pixels, ids))(jax.random.key(0)))
    clip = Clip.assemble(module, variables, tokenizer, Preprocess(64), "a small model")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_images(root / "pictures")
        print(f"{COUNT:,} JPEGs of 64 pixels, embeddings of {DIM} numbers, {jax.devices()[0].device_kind}")
        print("| precision | build | again, nothing new | size | query |\n| --- | --- | --- | --- | --- |")
        for half in (False, True):
            out = root / f"index-{half}"
            first, again = (
                _measure_seconds(lambda o=out, h=half: build(clip, root / "pictures", o, half=h, progress=False))
                for _ in range(2)
            )
            size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
            index = Index.open(out)
            search(index, clip, text="something")  # copies the index to the device
            times = [_measure_seconds(lambda i=index, n=n: search(i, clip, text=f"picture {n}")) for n in range(30)]
            cells = (f"{COUNT / first:,.0f} pictures/s", f"{again:.1f} s", f"{size:,.0f} MiB")
            print(
                f"| {'float16' if half else 'float32'} | {' | '.join(cells)} | {1e3 * statistics.median(times):.1f} ms |"
            )


def _init_variables(module, key, pixels, ids):
    import flax.linen as nn

    return nn.unbox(module.init(key, pixels, ids))


def _write_images(folder: Path) -> None:
    """Writes distinct images of 10 x 10 random blocks."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        blocks = Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8))
        blocks.resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number // 1000:03d}" / f"{number}.jpg")


def _measure_seconds(function) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

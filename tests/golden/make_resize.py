"""Makes `tests/golden/resize.npz`: pictures as big_vision's own `resize` makes them (its file pp/ops_image.py, run here).

    python tests/golden/make_resize.py BIG_VISION      (a clone of google-research/big_vision; needs TensorFlow)

`WIDTHxHEIGHT_SIZE` holds uint8 [SIZE, SIZE, 3] of the picture that `picture` draws, for `tests/data/test_images.py`;
`clip_N` uint8 [24, 24, 3] of `clip/hf-siglip/pictures/N.png`, for `make_clip.py`.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).resolve().parent
CASES = [(40, 31, 24), (24, 37, 24), (32, 32, 24), (640, 480, 32), (10, 8, 33), (31, 31, 31), (1, 1, 4), (7, 1, 5)]


def picture(width: int, height: int) -> np.ndarray:
    """Noise, uint8 [height, width, 3]."""
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)


def main(big_vision: str) -> None:
    import tensorflow as tf

    sys.path.insert(0, big_vision)
    ops = importlib.import_module("big_vision.pp.ops_image")
    files = sorted((GOLDEN / "clip" / "hf-siglip" / "pictures").iterdir())
    images = {f"{width}x{height}_{size}": (picture(width, height), size) for width, height, size in CASES}
    images |= {f"clip_{file.stem}": (np.array(Image.open(file)), 24) for file in files}
    resized = {
        name: ops.get_resize(size)({"image": tf.constant(image)})["image"].numpy()
        for name, (image, size) in images.items()
    }
    np.savez_compressed(GOLDEN / "resize.npz", **resized)


if __name__ == "__main__":
    main(sys.argv[1])

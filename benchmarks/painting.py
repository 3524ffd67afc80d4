"""Evaluates guided painting on prompts of one object by the guiding CLIP, a held-out CLIP and the oracle.

    python -m benchmarks.painting --vqgan runs/demo/vqgan --clip runs/demo/clip --held_out runs/clip-held-out [--seeds 1]

Images are painted with the options of `vqgan_jax.guided.demo`, which NAME=VALUE arguments override. The accuracy by CLIP is
the share of images whose prompt is nearest among all prompts. The held-out CLIP is the same model trained with another seed
(`--config.seed=1`); a lower accuracy by the held-out CLIP shows over-fitting to the guiding CLIP.
"""

import argparse
import ast
import time
from collections.abc import Iterator

import numpy as np

import clip_jax
import vqgan_jax
from benchmarks.command import main
from benchmarks.results import Row
from dalle_jax.evaluators import fill_template
from train_jax.datasets import shapes
from train_jax.datasets.shapes import oracle
from train_jax.datasets.shapes import scene as scenes
from train_jax.errors import UserError
from train_jax.pictures import enlarged_grid, split_into_rows
from vqgan_jax import guided
from vqgan_jax.guided.demo import OPTIONS

PROMPTS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vqgan", default="runs/demo/vqgan")
    parser.add_argument("--clip", nargs="+", default=["runs/demo/clip"], help="the guiding CLIPs")
    parser.add_argument("--held_out", default="runs/clip-held-out", help="the held-out CLIP")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=1, help="number of images per prompt")
    parser.add_argument("--sheet", metavar="FILE", help="output .png with the images")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="painting options; see vqgan_jax.guided.options")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    changes = dict(map(parse_option, arguments.options))
    vq = vqgan_jax.load(arguments.vqgan)
    clips, held_out = [clip_jax.load(path) for path in arguments.clip], clip_jax.load(arguments.held_out)
    texts = make_prompts(arguments.prompts)
    start = time.monotonic()
    painting = guided.paint_many(vq, clips, texts, seeds=range(arguments.seeds), **OPTIONS | changes)
    images = painting.images[:, :, 0].reshape(-1, *painting.images.shape[3:])
    settings = {"prompts": len(texts), "seeds": arguments.seeds, "steps": painting.losses.shape[-1]}
    settings |= {name: str(value) for name, value in changes.items()}
    yield Row("time", time.monotonic() - start, "s", settings)
    truth = np.repeat(np.arange(len(texts)), arguments.seeds)
    for name, clip in [("the guiding CLIP", clips[0]), ("the held-out CLIP", held_out)]:
        yield Row(f"right by {name}", 100 * np.mean(nearest_prompts(clip, images, texts) == truth), "%", settings)
    for name, correct in grade_by_oracle(images, [texts[i] for i in truth]).items():
        yield Row(f"right by the oracle: {name}", 100 * np.mean(correct), "%", settings)
    if arguments.sheet:
        enlarged_grid(split_into_rows(images, 8)).save(arguments.sheet)


def parse_option(text: str) -> tuple[str, object]:
    """Parses a `name=value` argument, with a Python literal or a string as value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r}: write NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make_prompts(count: int) -> list[str]:
    """Builds captions of one object in which colours and shapes are balanced."""
    colours, kinds = list(dict.fromkeys(n.split()[0] for n in shapes.LABEL_NAMES)), list(scenes.SHAPES)
    pairs = [(i % len(colours), (i + i // len(colours)) % len(kinds)) for i in range(len(colours) * len(kinds))]
    return [fill_template("a {}", f"{colours[c]} {kinds[s]}") for c, s in dict.fromkeys(pairs)][:count]


def nearest_prompts(clip, images: np.ndarray, texts: list[str]) -> np.ndarray:
    return np.argmax(clip.encode_image(images) @ clip.encode_text(texts).T, axis=1)


def grade_by_oracle(images: np.ndarray, texts: list[str]) -> dict[str, list[bool]]:
    """Returns whether the oracle reads in each image the object, the object as the largest, and the colour of its prompt."""
    objects = [[(o.colour, o.shape) for o in oracle.read(image)] for image in images]
    expected = [tuple(text.split()[1:]) for text in texts]
    graded = list(zip(expected, objects, strict=True))
    return {
        "it is there": [pair in pairs for pair, pairs in graded],
        "the largest object is it": [pairs[:1] == [pair] for pair, pairs in graded],
        "its colour is there": [pair[0] in {colour for colour, _ in pairs} for pair, pairs in graded],
    }


if __name__ == "__main__":
    main(rows, add_arguments)

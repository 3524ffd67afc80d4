"""Measures the accuracy of DALL-E's samples on scenes by temperature and guidance, and for the best of n samples.

    python -m benchmarks.drawing --model runs/dalle-shapes --clip runs/demo/clip [--prompts 256]

The oracle decides whether a sample shows its prompt. Prompts: `seen`, "a {colour} {shape}" with pairs of the training data;
`novel`, with the ten pairs that are not in the training data; `two`, captions of two objects and their relation.
"""

import argparse
import itertools
from collections.abc import Iterator

import numpy as np

import clip_jax
import dalle_jax
from benchmarks.command import main, positive
from benchmarks.results import Row
from dalle_jax import evaluators
from train_jax.data.sources import open_source
from vqgan_jax.stage2.rerank import clip_scores

CHOICES = (1, 2, 4, 8, 16, 32)
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
GUIDANCES = (1.0, 2.0, 3.0, 5.0)
KINDS = {"seen": ("test", "labels"), "novel": ("novel", "labels"), "two": ("test", "pairs")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="runs/dalle-shapes")
    parser.add_argument("--clip", default="runs/demo/clip")
    parser.add_argument("--prompts", type=positive, default=256)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--samples", type=positive, default=max(CHOICES), choices=CHOICES, help="samples per prompt")
    parser.add_argument("--sweep", type=positive, default=64, help="number of prompts of the temperature table")
    parser.add_argument("--top-p", type=float, default=0.9, help="top-p for the best-of-n table")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale for the best-of-n table")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    dalle, clip = dalle_jax.load(arguments.model), clip_jax.load(arguments.clip)
    prompts = {kind: make_prompts(*KINDS[kind], arguments.prompts) for kind in arguments.kinds}
    sources = {kind: open_source("shapes/32", KINDS[kind][0]) for kind in arguments.kinds}
    choices = [n for n in CHOICES if n <= arguments.samples]

    def is_correct(kind: str, texts: list[str], images: np.ndarray) -> np.ndarray:
        judge = sources[kind].judge
        return np.array([[judge(x, text)["correct"] for x in row] for text, row in zip(texts, images, strict=True)])

    models = {"model": arguments.model, "clip": arguments.clip}
    settings = models | {"prompts": arguments.prompts, "top-p": arguments.top_p, "guidance": arguments.guidance}
    for kind, texts in prompts.items():
        drawing = dalle.draw(texts, arguments.samples, top_p=arguments.top_p, guidance=arguments.guidance, progress=False)
        correct = is_correct(kind, texts, drawing.images)
        for ranking, scores in (("CLIP", clip_scores(clip, texts, drawing.images)), ("likelihood", drawing.log_probs)):
            for n in choices:
                best = np.argmax(scores[:, :n], axis=1)
                share = 100 * correct[np.arange(len(correct)), best].mean()
                yield Row(f"right of {kind}, the best of n by {ranking}", share, "%", settings | {"n": n})

    for kind, texts in prompts.items():
        few = texts[: arguments.sweep]
        for t, g in itertools.product(TEMPERATURES, GUIDANCES):
            share = 100 * is_correct(kind, few, dalle.generate(few, temperature=t, guidance=g, progress=False)).mean()
            settings = {"model": arguments.model, "prompts": len(few), "temperature": t, "guidance": g}
            yield Row(f"right of {kind}", share, "%", settings)


def make_prompts(split: str, about: str, count: int) -> list[str]:
    options = evaluators.EVALUATORS["drawing"].defaults()
    options.update({"about": about, "prompts": count})
    return evaluators.collect_prompts(open_source("shapes/32", split), options)


if __name__ == "__main__":
    main(rows, add_arguments)

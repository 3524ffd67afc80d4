"""Measures the accuracy of DALL-E's samples on scenes by temperature and guidance, and for the best of n samples.

    python -m benchmarks.drawing --model runs/dalle-shapes --clip runs/demo/clip [--prompts 256]

The oracle decides whether a sample shows its prompt. Prompts: `seen`, "a {colour} {shape}" with pairs of the training data;
`novel`, with the ten pairs that are not in the training data; `two`, captions of two objects and their relation.
"""

import argparse

import numpy as np

import clip_jax
import dalle_jax
from dalle_jax import evaluators
from train_jax.data.sources import open_source
from vqgan_jax.stage2.rerank import clip_scores

CHOICES = (1, 2, 4, 8, 16, 32)
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
GUIDANCES = (1.0, 2.0, 3.0, 5.0)
KINDS = {"seen": ("test", "labels"), "novel": ("novel", "labels"), "two": ("test", "pairs")}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.drawing", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/dalle-shapes")
    parser.add_argument("--clip", default="runs/demo/clip")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--most", type=int, default=max(CHOICES), choices=CHOICES, help="number of samples per prompt")
    parser.add_argument("--sweep", type=int, default=64, help="number of prompts of the temperature table")
    parser.add_argument("--top-p", type=float, default=0.9, help="top-p for the best-of-n table")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale for the best-of-n table")
    arguments = parser.parse_args()
    dalle, clip = dalle_jax.load(arguments.model), clip_jax.load(arguments.clip)
    prompts = {kind: make_prompts(*KINDS[kind], arguments.prompts) for kind in arguments.kinds}
    sources = {kind: open_source("shapes/32", KINDS[kind][0]) for kind in arguments.kinds}
    choices = [n for n in CHOICES if n <= arguments.most]

    def is_correct(kind: str, texts: list[str], images: np.ndarray) -> np.ndarray:
        shows = sources[kind].shows
        return np.array([[shows(x, text) for x in row] for text, row in zip(texts, images, strict=True)])

    print(f"The best of n, of {arguments.prompts} prompts; top-p {arguments.top_p:g}, guidance {arguments.guidance:g}:\n")
    _print_row("prompts", "chosen by", *(f"n = {n}" for n in choices))
    _print_row(*["---"] * (2 + len(choices)))
    for kind, texts in prompts.items():
        drawing = dalle.draw(texts, arguments.most, top_p=arguments.top_p, guidance=arguments.guidance, progress=False)
        correct = is_correct(kind, texts, drawing.images)
        for ranking, scores in (("CLIP", clip_scores(clip, texts, drawing.images)), ("likelihood", drawing.log_probs)):
            best = [np.argmax(scores[:, :n], axis=1) for n in choices]
            _print_row(f"`{kind}`", ranking, *(f"{100 * correct[np.arange(len(correct)), b].mean():.1f} %" for b in best))

    sweep_prompts = {kind: texts[: arguments.sweep] for kind, texts in prompts.items()}
    print(f"\nOne drawing of each of {arguments.sweep} prompts, right by temperature and guidance, {' / '.join(prompts)}:\n")
    _print_row("temperature", *(f"guidance {g:g}" for g in GUIDANCES))
    _print_row(*["---"] * (1 + len(GUIDANCES)))
    for t in TEMPERATURES:
        cells = []
        for g in GUIDANCES:
            images = {k: dalle.generate(p, temperature=t, guidance=g, progress=False) for k, p in sweep_prompts.items()}
            shares = [is_correct(k, sweep_prompts[k], x).mean() for k, x in images.items()]
            cells.append(" / ".join(f"{100 * share:.0f} %" for share in shares))
        _print_row(f"{t:g}", *cells)


def make_prompts(split: str, about: str, count: int) -> list[str]:
    options = evaluators.EVALUATORS["drawing"].defaults()
    options.update({"about": about, "prompts": count})
    return evaluators.collect_prompts(open_source("shapes/32", split), options)


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

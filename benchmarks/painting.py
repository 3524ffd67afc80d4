"""Evaluates guided painting by the guiding CLIP, a held-out CLIP and the reader of the data, on prompts of one thing.

    python -m benchmarks.painting --vqgan runs/demo/vqgan --clip runs/demo/clip --held_out runs/clip-held-out [--seeds 1]
    python -m benchmarks.painting --data emoji --vqgan runs/emoji/vqgan --clip runs/emoji/clip --held_out runs/emoji/judge

Images are painted from a plain start or, with --dalle, from drawings, with the options of the demo's data, which
NAME=VALUE arguments override. The accuracy by CLIP is the share of images whose prompt is nearest among all prompts. The
held-out CLIP is the same model trained with another seed (`--config.seed=1`); a lower accuracy by the held-out CLIP shows
over-fitting to the guiding CLIP. Cosines of paintings, and of true pictures beside them, tell whether a CLIP prefers what
was painted to the thing. "All parts" of a prompt are what it says and, of scenes, that nothing else is there (count).
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np

import clip_jax
import vqgan_jax
from benchmarks.command import main, parse_option, positive
from benchmarks.results import Row
from dalle_jax.evaluators import average_parts
from train_jax import command
from train_jax.data import sources
from train_jax.pictures import enlarged_grid, split_into_rows
from vqgan_jax import guided

PROMPTS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="shapes", choices=command.DEMOS, help="prompts, options and reader")
    parser.add_argument("--vqgan", default="runs/demo/vqgan")
    parser.add_argument("--clip", nargs="+", default=["runs/demo/clip"], help="the guiding CLIPs")
    parser.add_argument("--dalle", help="a DALL-E, which draws the starts; default: the plain start of the demo's data")
    parser.add_argument("--held_out", default="runs/clip-held-out", help="the held-out CLIP")
    parser.add_argument("--prompts", type=positive, default=PROMPTS)
    parser.add_argument("--seeds", type=positive, default=1, help="number of images per prompt")
    parser.add_argument("--sheet", metavar="FILE", help="output .png with the images")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="painting options; see vqgan_jax.guided.options")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    demo = command.open_demo(arguments.data)
    start = {"init_dalle": arguments.dalle} | demo.DRAWN_START if arguments.dalle else {}
    changes = start | dict(map(parse_option, arguments.options))
    vq = vqgan_jax.load(arguments.vqgan)
    clips, held_out = [clip_jax.load(path) for path in arguments.clip], clip_jax.load(arguments.held_out)
    prompts, pictures = zip(*demo.make_examples(arguments.prompts, vq.size), strict=True)
    start = time.monotonic()
    painting = guided.paint_many(vq, clips, list(prompts), seeds=range(arguments.seeds), **demo.PAINTING | changes)
    images = painting.images[:, :, 0].reshape(-1, *painting.images.shape[3:])
    settings = {"data": arguments.data, "vqgan": arguments.vqgan, "clip": " + ".join(arguments.clip)}
    settings |= {"held out": arguments.held_out, "prompts": len(prompts), "seeds": arguments.seeds}
    settings |= {"steps": painting.losses.shape[-1]} | {name: str(value) for name, value in changes.items()}
    yield Row("time", time.monotonic() - start, "s", settings)
    truth = np.repeat(np.arange(len(prompts)), arguments.seeds)
    for name, clip in [("the guiding CLIP", clips[0]), ("the held-out CLIP", held_out)]:
        embedded = clip.encode_text(prompts)
        cosines = clip.encode_image(images) @ embedded.T
        true = np.sum(clip.encode_image(pictures) * embedded, axis=1)
        yield Row(f"right by {name}", 100 * np.mean(np.argmax(cosines, axis=1) == truth), "%", settings)
        yield Row(f"cosine by {name}", np.mean(cosines[np.arange(len(truth)), truth]), "", settings)
        yield Row(f"cosine of true pictures by {name}", np.mean(true), "", settings)
    source = sources.open_source(demo.SOURCE, demo.SPLIT)
    for name, share in grade_by_reader(source.judge, images, [prompts[i] for i in truth]).items():
        yield Row(f"right by the reader: {name}", 100 * share, "%", settings)
    if arguments.sheet:
        enlarged_grid(split_into_rows(images, 8)).save(arguments.sheet)


def grade_by_reader(judge, images: np.ndarray, texts: Sequence[str]) -> dict[str, float]:
    """Returns the share of images in which the reader finds each part of their prompts, and all of them."""
    parts = [dict(judge(image, text)) for image, text in zip(images, texts, strict=True)]
    return average_parts([found | {"all parts": all(found.values())} for found in parts])


if __name__ == "__main__":
    main(rows, add_arguments)

"""Paints six prompts with each drawer, and draws a contact sheet: a row for each drawer, a column for each prompt.

    python -m benchmarks.drawers --clip runs/emoji/clip [--judge RUN] [--vqgan RUN] [--sheet FILE] [steps=100]

Measures seconds a step of all prompts at once (compilation apart), the memory of a step by its compiled program, and the
share of pictures that are nearest to their own prompt, and their cosine, by the guiding CLIP and by another one.
"""

import argparse
import time
from collections.abc import Iterator

import jax
import numpy as np

import clip_jax
import vqgan_jax
from benchmarks.command import main, parse_option, positive
from benchmarks.results import Row
from train_jax.errors import UserError
from train_jax.pictures import enlarged_grid
from vqgan_jax.guided import colour, drawers, painting, prompts
from vqgan_jax.guided import options as options_lib

PROMPTS = ("a red apple", "a smiling face", "a green tree", "a blue car", "a house", "a cat")
DEFAULTS = {"steps": 100, "cuts": 8, "cut_min": 0.6}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", required=True, help="the guiding CLIP")
    parser.add_argument("--judge", help="a CLIP that does not guide")
    parser.add_argument("--vqgan", help="VQGAN of the drawer vqgan, which is left out without one")
    parser.add_argument("--only", nargs="+", choices=tuple(drawers.TABLE), help="run only these drawers")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, metavar="PROMPT")
    parser.add_argument("--side", type=positive, help="side of the pictures in pixels (default: that of the guiding CLIP's)")
    parser.add_argument("--sheet", metavar="FILE", help="output .png with the pictures")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="painting options; see vqgan_jax.guided.options")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    vq, clip = arguments.vqgan and vqgan_jax.load(arguments.vqgan), clip_jax.load(arguments.clip)
    judges = {"the guiding CLIP": clip} | ({"the judge": clip_jax.load(arguments.judge)} if arguments.judge else {})
    side = arguments.side or clip.preprocess.size
    values = DEFAULTS | {"size": (side, side)} | dict(map(parse_option, arguments.options))
    names = arguments.only or [name for name in drawers.TABLE if name != "vqgan" or vq]
    if "vqgan" in names and not vq:
        raise UserError("--only vqgan: name its VQGAN by --vqgan")
    sheet = []
    for name in names:
        options = options_lib.resolve(values | {"drawer": name})
        jobs = [painting.Job(prompts.parse_scene(prompt), 0, options) for prompt in arguments.prompts]
        painter = painting.Painter(vq if name == "vqgan" else None, clip, jobs)
        steps = options.schedule.steps // 2
        state, _ = painter.advance(painter.state, steps)
        start = time.perf_counter()
        state, _ = painter.advance(state, steps)
        seconds = (time.perf_counter() - start) / steps
        images = painter.render(state)[0]
        sheet.append(list(colour.over_white(images)))
        settings = {"drawer": name, "pixels": side, "prompts": len(jobs), "steps": 2 * steps, "cuts": options.cutouts.cuts}
        settings |= {"numbers of a picture": sum(x.size for x in jax.tree.leaves(state.z)) // len(jobs)}
        yield Row("step of all prompts", seconds, "s", settings)
        yield Row("memory of a step", painter.steps[steps].plan.needed / 2**20, "MiB", settings)
        for judge_name, judge in judges.items():
            cosines = judge.encode_image(sheet[-1]) @ judge.encode_text(list(arguments.prompts)).T
            yield Row(f"right by {judge_name}", 100 * np.mean(cosines.argmax(1) == np.arange(len(jobs))), "%", settings)
            yield Row(f"cosine by {judge_name}", np.mean(np.diag(cosines)), "", settings)
        if arguments.sheet:
            enlarged_grid(sheet).save(arguments.sheet)


if __name__ == "__main__":
    main(rows, add_arguments)

"""Paints six prompts with each drawer and each preset, as contact sheets: a row for each, a column for each prompt.

    python -m benchmarks.drawers --clip runs/emoji/clip [--judge RUN] [--vqgan RUN] [--unclip RUN] [--sheet FILE] [steps=100]
    python -m benchmarks.drawers --clip runs/emoji/clip --presets --sheet presets.png

Measures the share of pictures that are nearest to their own prompt, and their cosine, by the guiding CLIP and another one;
and seconds a step of one picture of `--step-side` pixels (compilation apart), with its memory by the compiled program.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import clip_jax
import vqgan_jax
from benchmarks.command import main, parse_option, positive
from benchmarks.results import Row
from train_jax.errors import UserError
from train_jax.pictures import enlarged_grid
from vqgan_jax.guided import colour, drawers, exploration, painting, prompts
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.options import presets

PROMPTS = ("a red apple", "a smiling face", "a green tree", "a blue car", "a house", "a cat")
DEFAULTS = {"steps": 100, "cuts": 8, "jitter": 0.0}  # prompts name colours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", required=True, help="the guiding CLIP")
    parser.add_argument("--judge", help="a CLIP that does not guide")
    parser.add_argument("--vqgan", help="VQGAN of the drawer vqgan, which is left out without one")
    parser.add_argument("--unclip", help="decoder of the drawer unclip, which is left out without one")
    parser.add_argument("--presets", action="store_true", help="paint with each preset instead of each drawer")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="paint with these drawers (presets) only")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, metavar="PROMPT")
    parser.add_argument("--side", type=positive, help="side of the pictures in pixels (default: that of the guiding CLIP's)")
    parser.add_argument("--step-side", type=positive, default=256, help="side of a picture whose step is measured")
    parser.add_argument("--step-count", type=positive, default=3, help="steps that are measured")
    parser.add_argument("--sheet", metavar="FILE", help="output .png with the pictures")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="painting options; see vqgan_jax.guided.options")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    vq, clip = arguments.vqgan and vqgan_jax.load(arguments.vqgan), clip_jax.load(arguments.clip)
    judges = {"the guiding CLIP": clip} | ({"the judge": clip_jax.load(arguments.judge)} if arguments.judge else {})
    side = arguments.side or clip.preprocess.size
    stated = dict(map(parse_option, arguments.options))
    kind, sheet = "preset" if arguments.presets else "drawer", []
    for name, values in find_looks(arguments).items():
        values = values | stated
        painter = make_painter(vq, clip, values, side, arguments.prompts)
        steps, count = painter.options.schedule.steps, len(arguments.prompts)
        state, _ = painter.advance(painter.state, steps)
        sheet.append(list(colour.over_white(painter.render(state)[0])))
        settings = {kind: name, "cuts": painter.options.cutouts.cuts}
        painted = settings | {"pixels": side, "prompts": count, "steps": steps}
        painted |= {"numbers of a picture": sum(x.size for x in jax.tree.leaves(state.z)) // count}
        for judge_name, judge in judges.items():
            cosines = judge.encode_image(sheet[-1]) @ judge.encode_text(list(arguments.prompts)).T
            yield Row(f"right by {judge_name}", 100 * np.mean(cosines.argmax(1) == np.arange(count)), "%", painted)
            yield Row(f"cosine by {judge_name}", np.mean(np.diag(cosines)), "", painted)
        seconds, mebibytes = measure_step(vq, clip, values, arguments)
        settings |= {"pixels": arguments.step_side}
        yield Row("step of one prompt", seconds, "s", settings)
        yield Row("memory of a step", mebibytes, "MiB", settings)
        if arguments.sheet:
            enlarged_grid(sheet).save(arguments.sheet)


def find_looks(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the options of each drawer or preset by its name, without those whose models are not named."""
    if arguments.presets:
        looks = {name: DEFAULTS | {"preset": name} for name in presets.TABLE}
    else:
        looks = {name: DEFAULTS | {"cut_min": 0.6, "drawer": name} for name in drawers.TABLE}
        looks["unclip"]["drawer_options"] = {"run": arguments.unclip}
    names = arguments.only or list(looks)
    options_lib.refuse_unknown(names, looks, "a preset" if arguments.presets else "a drawer")
    missing = {"unclip"} if not arguments.unclip else set()
    missing |= {name for name, look in looks.items() if exploration.uses_vqgan(look)} if not arguments.vqgan else set()
    for name in set(arguments.only or ()) & missing:
        raise UserError(f"--only {name}: name its model by {'--unclip' if name == 'unclip' else '--vqgan'}")
    return {name: looks[name] for name in names if name not in missing}


def make_painter(vq, clip, values: Mapping[str, Any], side: int, texts) -> painting.Painter:
    options = options_lib.resolve(values | {"size": (side, side)})
    jobs = [painting.Job(prompts.parse_scene(text), 0, options) for text in texts]
    return painting.Painter(vq if exploration.uses_vqgan(values) else None, clip, jobs)


def measure_step(vq, clip, values: Mapping[str, Any], arguments: argparse.Namespace) -> tuple[float, float]:
    """Returns the seconds of a step of one prompt, and the memory of its program in MiB."""
    painter, count = make_painter(vq, clip, values, arguments.step_side, arguments.prompts[:1]), arguments.step_count
    state, _ = painter.advance(painter.state, count)
    start = time.perf_counter()
    painter.advance(state, count)
    return (time.perf_counter() - start) / count, painter.steps[count].plan.needed / 2**20


if __name__ == "__main__":
    main(rows, add_arguments)

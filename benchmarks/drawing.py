"""Measures how often images of prompts are right, for the best of n samples: of a DALL-E or an unCLIP, on any demo's data.

    python -m benchmarks.drawing --model runs/dalle-shapes --clip runs/clip-shapes [--prompts 256] [guidance=5]
    python -m benchmarks.drawing --data emoji --model runs/emoji/dalle --clip runs/emoji/clip --judge runs/emoji/judge
    python -m benchmarks.drawing --model runs/dalle-shapes --sweep 64

Samples are drawn with the options of the demo, or of unCLIP with guidance 3, which NAME=VALUE arguments override. The reader
of the data decides whether a sample shows its prompt, and each part of it. `--clip` ranks samples; DALL-E's likelihood ranks
them as well. `--judge` names a CLIP that took no part: "nearest" is the share of images whose thing is nearest among the
things of all prompts, and the Frechet distance is that of its features of images and of true pictures of the prompts. True
pictures themselves, measured alike, are the rows of model "true pictures". `--sheets` keeps the first sample of each of the
first 64 prompts, as they come.

`--sweep` measures temperatures and guidances, of unCLIP the guidances of prior and decoder, on so many prompts instead: the
share of samples that are right, and their diversity, the root mean square pixel distance between two samples of a prompt.
`--prior` and `--upsampler` are runs of unCLIP's other parts.

Prompts of scenes: `seen`, "a {colour} {shape}" with pairs of the training data; `novel`, with the ten pairs that are not in
the training data; `two`, captions of two objects and their relation. Of emoji, by name and style: `pairs` of thing and
artist that were held out, and `known` ones.
"""

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import clip_jax
import dalle_jax
from benchmarks.command import main, parse_option, positive
from benchmarks.results import Row
from dalle_jax import evaluators
from train_jax import command, run_directory
from train_jax.data import sources
from train_jax.data.images import decode
from train_jax.errors import UserError
from train_jax.pictures import enlarged_grid, split_into_rows
from vqgan_jax.distribution import frechet_distance
from vqgan_jax.stage2.rerank import clip_scores

SHOWN = 64  # samples on a sheet
CHOICES = (1, 2, 4, 8, 16, 32)
SWEPT = {"temperature": (0.0, 0.5, 0.8, 1.0), "guidance": (1.0, 2.0, 3.0, 5.0)}
UNCLIP_TASK, UNCLIP_DRAWN = "dalle_jax.unclip.decoder_task", {"guidance": 3.0}
PARTS = ("prior", "upsampler")  # arguments
UNCLIP_SWEPT = {"prior_guidance": (1.0, 3.0), "guidance": (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of prompts: records, what is asked about them, and the template of the thing that is asked for."""

    split: str
    about: str = "labels"
    template: str = "a {}"
    thing: str = "a {}"
    where: tuple[str, ...] = ()


_STYLED = {"about": "fields", "template": "{concept}, {style}", "thing": "{concept}", "where": ("tone=",)}
KINDS = {
    "shapes": {"seen": Kind("test"), "novel": Kind("novel"), "two": Kind("test", about="pairs")},
    "emoji": {"pairs": Kind("pairs", **_STYLED), "known": Kind("train", **_STYLED)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="shapes", choices=command.DEMOS, help="prompts, options and reader")
    parser.add_argument("--model", default="runs/dalle-shapes", help="run of a DALL-E, or of a decoder of unCLIP")
    parser.add_argument("--prior", help="run of unCLIP's prior, instead of that of the decoder's run")
    parser.add_argument("--upsampler", help="run of unCLIP's upsampler")
    parser.add_argument("--clip", help="the CLIP that ranks samples")
    parser.add_argument("--judge", help="the CLIP that took no part")
    parser.add_argument("--prompts", type=positive, default=256)
    parser.add_argument("--kinds", nargs="+", help="kinds of prompts (default: all of the data)")
    parser.add_argument("--samples", type=int, default=1, choices=CHOICES, help="samples per prompt (default 1)")
    parser.add_argument("--sheets", metavar="FOLDER", type=Path, help="output folder of KIND.png, the first samples")
    parser.add_argument("--sweep", type=positive, help="measure sampling options on so many prompts")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="options of `draw`")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    demo = command.open_demo(arguments.data)
    known = KINDS[arguments.data]
    unknown = set(arguments.kinds or ()) - set(known)
    if unknown:
        raise UserError(f"--kinds {' '.join(sorted(unknown))}: the kinds of {arguments.data} are {', '.join(known)}")
    draw, options, swept = open_model(arguments, demo.DRAWN)
    options |= dict(map(parse_option, arguments.options))
    parts = {name: getattr(arguments, name) for name in ("model", *PARTS) if getattr(arguments, name)}
    for name in arguments.kinds or known:
        prompts = Prompts(demo.SOURCE, known[name], arguments.prompts)
        settings = {"data": arguments.data, "prompts": len(prompts.texts)}
        if arguments.sweep:
            yield from sweep(draw, prompts, name, swept, settings | parts)
        else:
            yield from measure(draw, prompts, name, arguments, options, settings, parts)


class Prompts:
    """Prompts of a kind, with the records that they are about."""

    def __init__(self, source: str, kind: Kind, count: int):
        self.source = sources.open_source(source, kind.split)
        self.source = sources.select(self.source, kind.where) if kind.where else self.source
        options = evaluators.EVALUATORS["drawing"].defaults()
        options.update({"about": kind.about, "prompts": count, "template": kind.template})
        self._indices, self.texts = zip(*evaluators.collect_indexed_prompts(self.source, options), strict=True)
        options.template = kind.thing
        self.things = evaluators.collect_prompts(self.source, options)

    @functools.cached_property
    def pictures(self) -> list[np.ndarray]:
        """The pictures of the records."""
        return [np.asarray(decode(self.source[index]["image"])) for index in self._indices]

    def grade(self, pictures) -> list[list[dict[str, bool]]]:
        """Returns the parts of each prompt that the reader finds in each of its pictures."""
        pairs = zip(self.texts, pictures, strict=True)
        return [[dict(self.source.judge(image, text)) for image in row] for text, row in pairs]


def open_model(arguments: argparse.Namespace, drawn: dict):
    """Opens a model; returns its function `draw(texts, n, …)`, the options with which it draws, and values to sweep."""
    parts = {name: getattr(arguments, name) for name in PARTS}
    config = run_directory.read_config(Path(arguments.model))
    if config is not None and config["task"] == UNCLIP_TASK:
        return dalle_jax.load_unclip(arguments.model, **parts).draw, dict(UNCLIP_DRAWN), UNCLIP_SWEPT
    for name in filter(parts.get, parts):
        raise UserError(f"--{name} {parts[name]}: {arguments.model} is no run of unCLIP's decoder; leave --{name} out")
    return dalle_jax.load(arguments.model).draw, dict(drawn), SWEPT


def measure(draw, prompts: Prompts, kind: str, arguments, options: dict, settings: dict, parts: dict) -> Iterator[Row]:
    """Grades samples by the reader and the judge, the first of each prompt and the best of n."""
    drawn = draw(list(prompts.texts), arguments.samples, progress=False, **options)
    if arguments.sheets:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        sheet = enlarged_grid(split_into_rows(drawn.images[:SHOWN, 0], math.isqrt(SHOWN)))
        sheet.save(arguments.sheets / f"{kind}.png")
    verdicts = prompts.grade(drawn.images)
    rankings = {}
    if arguments.clip:
        clip = clip_jax.load(arguments.clip)
        rankings["CLIP"] = clip_scores(clip, list(prompts.texts), drawn.images)
    if hasattr(drawn, "log_probs"):
        rankings["likelihood"] = drawn.log_probs
    model = settings | parts | {name: str(value) for name, value in options.items()}
    judge = arguments.judge and Judge(arguments.judge, prompts)
    everyone = np.arange(len(verdicts))
    for n in (n for n in CHOICES if n <= arguments.samples):
        for ranking, scores in rankings.items() if n > 1 else [("", np.zeros((len(verdicts), 1)))]:
            best = np.argmax(scores[:, :n], axis=1)
            ranked = model | ({"n": n, "ranked by": ranking} if n > 1 else {"n": 1})
            for part, share in evaluators.average_parts([verdicts[i][best[i]] for i in everyone]).items():
                yield Row(f"{kind} by the reader: {part}", 100 * share, "%", ranked)
            if judge:
                images, ranked = drawn.images[everyone, best], ranked | {"judge": arguments.judge}
                yield from judge.measure(images, kind, ranked)
                yield Row(f"{kind} by the judge: Frechet distance x 1000", 1000 * judge.distance(images), "", ranked)
    truth = settings | {"model": "true pictures"}
    for part, share in evaluators.average_parts([row[0] for row in prompts.grade([[x] for x in prompts.pictures])]).items():
        yield Row(f"{kind} by the reader: {part}", 100 * share, "%", truth)
    if judge:
        yield from judge.measure(prompts.pictures, kind, truth | {"judge": arguments.judge})


class Judge:
    """A CLIP that took no part in the samples: tells the thing of a prompt from those of the others."""

    def __init__(self, path: str, prompts: Prompts):
        self._clip, self._true = clip_jax.load(path), prompts.pictures
        things = list(dict.fromkeys(prompts.things))
        self._truth = np.array([things.index(thing) for thing in prompts.things])
        self._texts = self._clip.encode_text(things)

    def measure(self, pictures, kind: str, settings: dict) -> Iterator[Row]:
        features = self._clip.encode_image(list(pictures))
        ranks = np.argsort(-features @ self._texts.T, axis=1, kind="stable")
        settings = settings | {"things": len(self._texts)}
        for k in (1, 5):
            share = np.mean(np.any(ranks[:, :k] == self._truth[:, None], axis=1))
            yield Row(f"{kind} by the judge: nearest {k}", 100 * share, "%", settings)

    def distance(self, pictures) -> float:
        """Returns the Frechet distance between the features of pictures and of the prompts' true ones."""
        return frechet_distance(self._clip.encode_image(list(pictures)), self._clip.encode_image(self._true))


def sweep(draw, prompts: Prompts, kind: str, swept: dict, settings: dict) -> Iterator[Row]:
    """Measures all combinations of sampling options, by two samples of each prompt."""
    for values in itertools.product(*swept.values()):
        options = dict(zip(swept, values, strict=True))
        images = draw(list(prompts.texts), 2, progress=False, **options).images
        right = evaluators.average_parts([parts for row in prompts.grade(images) for parts in row])["correct"]
        distances = np.sqrt(np.mean(np.square(np.diff(images / 255, axis=1)), axis=(1, 2, 3, 4)))
        yield Row(f"{kind} by the reader: correct", 100 * right, "%", settings | options)
        yield Row(f"{kind}: diversity", np.mean(distances), "", settings | options)


if __name__ == "__main__":
    main(rows, add_arguments)

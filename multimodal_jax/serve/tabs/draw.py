"""Drawing from a sentence with a DALL-E."""

import json
from collections.abc import Callable
from pathlib import Path

from dalle_jax import cli
from dalle_jax.output import KEY
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.runs import Runs
from multimodal_jax.serve.tab import SEED, Choice, Number, Tab, Text, Values, options, parse, positional
from train_jax.pictures import read_png_text

NOTHING, LIKELIHOOD = "nothing", "likelihood"


def list_rankings(runs: Runs) -> list[str]:
    """Returns the ways to rank the pictures of a prompt, CLIPs first."""
    return [*map(str, runs.paths["clip"]), LIKELIHOOD, NOTHING]


SAMPLING = {
    "n": Number("Pictures", 8, 1, 32),
    "guidance": Number("Guidance", 3.0, 1.0, 20.0, "how strictly the text is followed; 1: none"),
    "top_p": Number("Top p", 0.9, 0.01, 1.0, "total probability of the codes to choose from"),
    "temperature": Number("Temperature", 1.0, 0.0, 5.0, "0: always the likeliest code"),
    "rerank": Choice("Best first by", list_rankings),
    "seed": SEED,
}
ADVANCED = ("guidance", "top_p", "temperature", "rerank", "seed")


def sampling_words(values: Values, folder: str) -> list[str]:
    """Makes the options of `generate` and `complete`."""
    rerank = None if values["rerank"] == NOTHING else values["rerank"]
    names = ("n", "guidance", "top_p", "temperature", "seed")
    return options(model=values["dalle"], **{name: values[name] for name in names}, rerank=rerank, folder=folder)


def run_command(
    models: Models, job: Job, words: list[str], draw: Callable, unit: str = "rows of codes"
) -> list[tuple[Path, str]]:
    """Runs a command that draws pictures of one prompt into `job.folder / "pictures"`; returns them, the best first.

    Args:
      words: command line with the name of the program.
      draw: `(arguments, preview)`; a CLIP that ranks is loaded already.
      unit: what the previews count.
    """
    arguments = parse(cli.make_parser(), words[1:])
    if arguments.rerank not in (None, LIKELIHOOD):
        arguments.rerank = models.open("clip", arguments.rerank)

    def show(first: int, count: int, images) -> None:
        job.show(f"{count} {unit} …", images)

    job.show("loading, and at the first time compiling …")
    draw(arguments, show)
    files = sorted((job.folder / "pictures").glob("*.png"), key=rank)
    return [(file, "") for file in files]


def rank(file: Path) -> int:
    """Returns the rank of a picture, from its metadata."""
    return json.loads(read_png_text(file, KEY))["rank"]


def _make_words(values: Values, folder: str) -> list[str]:
    return ["dalle-jax", "generate", *sampling_words(values, folder), *positional(values["prompt"])]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `dalle-jax generate`."""
    return _make_words(values, "pictures")


def run(models: Models, values: Values, job: Job) -> Result:
    """Draws pictures by `dalle-jax generate`."""

    def draw(arguments, preview) -> None:
        cli.draw(models.open("dalle", values["dalle"]), arguments, arguments.prompts, preview=preview)

    pictures = run_command(models, job, _make_words(values, str(job.folder / "pictures")), draw)
    return Result(pictures, text=f"{len(pictures)} pictures")


TAB = Tab(
    "Draw",
    "Draws pictures from a sentence, code by code.",
    ("dalle",),
    {"prompt": Text("Prompt", info="such as: a red circle"), **SAMPLING},
    "Draw",
    make_words,
    run,
    advanced=ADVANCED,
    is_shared=True,
)

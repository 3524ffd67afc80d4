"""Completion of a picture of which a half is kept."""

from pathlib import Path

from dalle_jax import cli
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Choice, Picture, Tab, Text, Values, options, positional
from multimodal_jax.serve.tabs.draw import ADVANCED, SAMPLING, run_command, sampling_words


def _make_words(values: Values, picture: str, folder: str) -> list[str]:
    words = [*options(keep=values["keep"]), *sampling_words(values, folder)]
    return ["dalle-jax", "complete", *words, *positional(picture, values["prompt"])]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `dalle-jax complete`."""
    return _make_words(values, Path(values["picture"]).name, "pictures")


def run(models: Models, values: Values, job: Job) -> Result:
    """Completes a picture by `dalle-jax complete`."""

    def draw(arguments, preview) -> None:
        cli.draw(models.open("dalle", values["dalle"]), arguments, [arguments.prompt], arguments.image, preview)

    words = _make_words(values, values["picture"], str(job.folder / "pictures"))
    pictures = run_command(models, job, words, draw)
    return Result(pictures, text=f"{len(pictures)} pictures that share the {values['keep']} half")


TAB = Tab(
    "Complete",
    "Keeps a half of a picture and draws the rest.",
    ("dalle",),
    {
        "picture": Picture("Picture"),
        "prompt": Text("Prompt", optional=True, info="what the whole picture shows"),
        "keep": Choice("Keep the half at the", cli.HALVES),
        **SAMPLING,
    },
    "Complete",
    make_words,
    run,
    advanced=ADVANCED,
)

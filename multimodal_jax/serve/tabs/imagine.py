"""Pictures of a sentence by unCLIP."""

from dalle_jax.unclip.cli import imagine
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import SEED, Choice, Number, Tab, Text, Values, options, positional
from multimodal_jax.serve.tabs.draw import LIKELIHOOD, NOTHING, list_rankings, run_command

_NUMBERS = ("n", "guidance", "steps", "prior_steps", "seed")


def _make_words(values: Values, folder: str) -> list[str]:
    rerank = None if values["rerank"] == NOTHING else values["rerank"]
    words = options(model=values["unclip"], **{name: values[name] for name in _NUMBERS}, rerank=rerank, folder=folder)
    return ["dalle-jax", "imagine", *words, *positional(values["prompt"])]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `dalle-jax imagine`."""
    return _make_words(values, "pictures")


def run(models: Models, values: Values, job: Job) -> Result:
    """Samples pictures by `dalle-jax imagine`."""

    def draw(arguments, preview) -> None:
        imagine(models.open("unclip", values["unclip"]), arguments, arguments.prompts, preview)

    words = _make_words(values, str(job.folder / "pictures"))
    pictures = run_command(models, job, words, draw, f"of {values['steps']} steps")
    return Result(pictures, text=f"{len(pictures)} pictures")


TAB = Tab(
    "Imagine",
    "Samples the CLIP embedding of a picture from a sentence, and the picture from the embedding (unCLIP).",
    ("unclip",),
    {
        "prompt": Text("Prompt", info="such as: a red circle"),
        "n": Number("Pictures", 4, 1, 16),
        "guidance": Number("Guidance", 3.0, 1.0, 20.0, "how strictly the text is followed; 1: none"),
        "steps": Number("Steps", 25, 2, 1000, "of the decoder"),
        "prior_steps": Number("Steps of the prior", 25, 2, 1000),
        "rerank": Choice("Best first by", lambda runs: [name for name in list_rankings(runs) if name != LIKELIHOOD]),
        "seed": SEED,
    },
    "Imagine",
    make_words,
    run,
    advanced=("guidance", "steps", "prior_steps", "rerank", "seed"),
)

"""Where a word is in a picture: a heat map of the patches' cosines."""

from pathlib import Path

from PIL import Image

from clip_jax import sheets
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Picture, Tab, Text, Values, options, positional
from train_jax import arguments as arguments_lib

_MAX_TEXTS = 8


def _texts(values: Values) -> list[str]:
    return arguments_lib.listed(values["texts"], "a text", "TEXT")[:_MAX_TEXTS]


def make_words(values: Values) -> list[str]:
    words = options(model=values["clip"], png="heat.png")
    return ["clip-jax", "heatmap", *words, *positional(Path(values["picture"]).name, *_texts(values))]


def run(models: Models, values: Values, job: Job) -> Result:
    """Draws the sheet of `clip-jax heatmap`."""
    clip, texts, file = models.open("clip", values["clip"]), _texts(values), job.folder / "heat.png"
    maps = clip.heat_map([values["picture"]], texts)[0]
    sections = sheets.make_heat_sections(Image.fromarray(clip.preprocess(values["picture"])), texts, maps)
    sheets.render_contact_sheet(sections, columns=min(4, 1 + len(maps)), size=256).save(file, "PNG")
    return Result([(file, "")], text="hot colours are high cosines; each map has its own scale")


TAB = Tab(
    "Where",
    "Shows where in a picture words are seen.",
    ("clip",),
    {
        "picture": Picture("Picture"),
        "texts": Text("Words", info=f"up to {_MAX_TEXTS}, separated by commas"),
    },
    "Show where",
    make_words,
    run,
)

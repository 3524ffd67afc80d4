"""Where a word is in a picture: a heat map of the patches' cosines."""

from pathlib import Path

from PIL import Image

from clip_jax import sheets
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Picture, Tab, Text, Values, options, positional
from train_jax import arguments as arguments_lib

_MAX_TEXTS = 8
_SIDE = 256  # pixels of a map, as in the sheet


def _texts(values: Values) -> list[str]:
    return arguments_lib.listed(values["texts"], "a text", "TEXT")[:_MAX_TEXTS]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `clip-jax heatmap`."""
    words = options(model=values["clip"], png="heat.png")
    return ["clip-jax", "heatmap", *words, *positional(Path(values["picture"]).name, *_texts(values))]


def run(models: Models, values: Values, job: Job) -> Result:
    """Draws the picture, its heat maps, and last the sheet of `clip-jax heatmap`."""
    clip, texts = models.open("clip", values["clip"]), _texts(values)
    maps = clip.heat_map([values["picture"]], texts)[0]
    sections = sheets.make_heat_sections(Image.fromarray(clip.preprocess(values["picture"])), texts, maps)
    drawn = [(cell.picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), cell.name) for cell in sections[0].cells]
    drawn.append((sheets.render_contact_sheet(sections, columns=min(4, 1 + len(maps)), size=_SIDE), "all in one file"))
    pictures = []
    for number, (picture, caption) in enumerate(drawn):
        file = job.folder / f"heat-{number}.png"
        picture.save(file, "PNG")
        pictures.append((file, caption))
    return Result(pictures, text="hot colours are high cosines; each map has its own scale")


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

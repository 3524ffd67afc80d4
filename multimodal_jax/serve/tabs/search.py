"""Search in an index of pictures, by words or by a picture."""

from pathlib import Path

from clip_jax.search import search
from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Number, Picture, Tab, Text, Values, options, positional
from train_jax.data.images import BrokenSample, decode

_SIDE = 256  # pixels of a thumbnail


def make_words(values: Values) -> list[str]:
    """Makes the command line of `clip-jax search`."""
    picture = Path(values["picture"]).name if values["picture"] else None
    words = options(model=values["clip"], top=values["top"], image=picture)
    return ["clip-jax", "search", *words, *positional(values["index"], *filter(None, [values["text"]]))]


def run(models: Models, values: Values, job: Job) -> Result:
    """Finds pictures. Raises SearchError unless there is either a text or a picture."""
    index, clip = models.open("index", values["index"]), models.open("clip", values["clip"])
    hits = search(index, clip, text=values["text"] or None, image=values["picture"], k=values["top"])
    pictures = []
    for rank, hit in enumerate(hits, 1):
        file = job.folder / f"{rank:02d}-{hit.path.stem}.png"
        try:
            picture = decode(hit.path)
        except BrokenSample:  # deleted or damaged since it was indexed
            continue
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(file)
        pictures.append((file, f"{hit.score:.3f}"))
    gone = f"; {len(hits) - len(pictures)} cannot be read" if len(pictures) < len(hits) else ""
    return Result(pictures, text=f"{len(hits)} of {len(index):,} pictures, by cosine{gone}")


TAB = Tab(
    "Search",
    "Finds the pictures of an index that are nearest to words, or to a picture.",
    ("clip", "index"),
    {
        "text": Text("Words", optional=True, info="such as: a red circle"),
        "picture": Picture("… or a picture", optional=True),
        "top": Number("Pictures", 8, 1, 48),
    },
    "Search",
    make_words,
    run,
    advanced=("top",),
    is_shared=True,
)

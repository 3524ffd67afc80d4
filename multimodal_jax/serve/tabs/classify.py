"""Zero-shot classification of a picture with labels of one's own."""

from pathlib import Path

from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Picture, Tab, Text, Values, options, positional
from train_jax import arguments as arguments_lib
from train_jax.errors import UserError


def make_words(values: Values) -> list[str]:
    """Makes the command line of `clip-jax classify`."""
    words = options(model=values["clip"], template=values["template"])
    # In one word: a list of labels may start with a hyphen.
    labels = f"--labels={values['labels']}"
    return ["clip-jax", "classify", *words, labels, *positional(Path(values["picture"]).name)]


def run(models: Models, values: Values, job: Job) -> Result:
    """Computes the probability of each label. Raises UserError for a template without {}."""
    labels = arguments_lib.listed(values["labels"], "a label", "--labels")
    clip = models.open("clip", values["clip"])
    try:
        probabilities = clip.classify([values["picture"]], labels, [values["template"]])[0]
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
    shares = dict(zip(labels, map(float, probabilities), strict=True))
    best = max(shares, key=shares.get)
    return Result(shares=shares, text=f"{best}: {100 * shares[best]:.1f} %")


TAB = Tab(
    "Classify",
    "Says which of your labels fits a picture best.",
    ("clip",),
    {
        "picture": Picture("Picture"),
        "labels": Text("Labels", info="separated by commas, such as: a red circle, a blue star"),
        "template": Text("Template", "{}", info="what is made of a label, such as: a drawing of {}"),
    },
    "Classify",
    make_words,
    run,
    advanced=("template",),
    has_shares=True,
    is_shared=True,
)

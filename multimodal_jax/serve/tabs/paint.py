"""Painting by the gradient of CLIP (VQGAN+CLIP), watched while it happens."""

from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import SEED, Choice, Number, Tab, Text, Values, options, parse, positional
from train_jax.errors import ConfigError, UserError
from vqgan_jax import cli
from vqgan_jax.guided import cli as guided_cli
from vqgan_jax.guided.options import INIT_NOISES
from vqgan_jax.guided.prompts import parse_scene

_CODES = "random codes"
_NUMBERS = ("steps", "cuts", "lr", "init_pixels", "cut_min", "jitter", "save_every", "seed")


def _make_words(values: Values, out: str) -> list[str]:
    words = options(vqgan=values["vqgan"], clip=values["clip"], out=out, **{name: values[name] for name in _NUMBERS})
    if values["start"] != _CODES:
        words += options(init_noise=values["start"])
    return ["vqgan-jax", "paint", *words, *positional(values["prompt"])]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `vqgan-jax paint`."""
    return _make_words(values, "painting.png")


def run(models: Models, values: Values, job: Job) -> Result:
    """Paints by `vqgan-jax paint`. Raises UserError for a prompt that names a file: files are the server's."""
    files = [file for part in parse_scene(values["prompt"]) for file in part.files]
    if files:
        raise UserError(f"the prompt names {files[0]}, a file of this machine: paint it on the command line")
    file = job.folder / "painting.png"
    arguments = parse(cli.make_parser(), _make_words(values, str(file))[1:])

    def show(step: int, images, losses) -> None:
        job.show(f"step {step} of {values['steps']}, loss {losses[0, -1]:.3f}", images)

    try:
        request = guided_cli.parse_request(arguments)
        files = guided_cli.validate(request, [arguments.out])
        job.show("loading, and at the first time compiling …")
        vq, clip = models.open("vqgan", values["vqgan"]), models.open("clip", values["clip"])
        fields = guided_cli.make_metadata(request, vq, [clip], files)
        guided_cli.run_painting(arguments, request, vq, [clip], fields, show)
    except (ConfigError, FloatingPointError) as error:
        raise UserError(str(error)) from error
    return Result([(file, values["prompt"])], text=f"{values['steps']} steps")


TAB = Tab(
    "Paint",
    "Changes the codes of a picture, step by step, until CLIP finds it similar to a sentence.",
    ("vqgan", "clip"),
    {
        "prompt": Text("Prompt", info="such as: a red star | noise:-0.3"),
        "steps": Number("Steps", 300, 1, 2000),
        "cuts": Number("Cutouts", 8, 1, 128, "parts of the picture that CLIP sees in each step"),
        "lr": Number("Learning rate", 0.1, 1e-4, 10.0),
        "start": Choice("Start", ("plain", *(kind for kind in INIT_NOISES if kind != "plain"), _CODES), "plain: light grey"),
        "init_pixels": Number("Stay near the start", 1.0, 0.0, 1000.0, "weight of the pixels' distance to it"),
        "cut_min": Number("Smallest cutout", 0.6, 0.0, 1.0, "fraction of the shorter side; 0: CLIP's resolution"),
        "jitter": Number("Colour jitter", 0.0, 0.0, 1.0, "of the cutouts; 0 if the prompt names colours"),
        "save_every": Number("Show every", 20, 1, 1000, "steps"),
        "seed": SEED,
    },
    "Paint",
    make_words,
    run,
    advanced=("cuts", "lr", "start", "init_pixels", "cut_min", "jitter", "save_every", "seed"),
)

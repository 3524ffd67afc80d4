"""The command `multimodal-jax`: opens a page for trained models in the browser, and runs the demo.

User errors print one line and return exit code 2.
"""

import argparse
import sys

from multimodal_jax import demo
from train_jax import arguments as arguments_lib
from train_jax import command

_NAMED = {"clip": "CLIP", "vqgan": "VQGAN", "dalle": "DALL-E", "unclip": "unCLIP"}  # kinds of models that may be anywhere
_EXAMPLES = {
    "": """\
examples:
  multimodal-jax demo
  multimodal-jax serve runs/demo

multimodal-jax COMMAND --help describes each command.""",
    "serve": """\
examples:
  multimodal-jax serve runs/demo
  multimodal-jax serve runs --port 8000
  multimodal-jax serve runs/demo --clip clip:vit-b-32-openai

The models are the runs and indexes in RUNS and two levels below, and those named by --clip, --vqgan, --dalle and --unclip,
such as public ones, which are loaded, and downloaded if necessary, before the page opens. What is missing is shown with the
command that makes it. The page needs gradio (the extra [app]) and contacts no other machine. Whoever reaches the address can
use the models and search the indexed pictures: without --host only this machine can.""",
    "demo": """\
examples:
  multimodal-jax demo
  multimodal-jax demo --data emoji --workdir runs/emoji

Trains a CLIP, a VQGAN and a DALL-E, each in a process of its own, and paints. The same command goes on if interrupted.
Drawings (--data emoji) are prepared first, with train-jax prepare; `make emoji` does both.""",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    arguments = _make_parser().parse_args(arguments_lib.expand_home(argv))
    return command.run_command("multimodal-jax", arguments)


def _make_parser() -> argparse.ArgumentParser:
    parser, add = command.parser("multimodal-jax", "Use all models together: a page in the browser, a demo.", _EXAMPLES)
    serve = add("serve", "Open a page for the models of a folder in the browser.", _serve)
    serve.add_argument("runs", metavar="RUNS", help="folder of run directories, such as runs/demo")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=7860, help="port to listen at (default %(default)s)")
    for kind, name in _NAMED.items():
        text = f"a further {name}: a run, a file, hf:ORG/NAME, a short name; may be repeated"
        serve.add_argument(f"--{kind}", action="append", default=[], metavar="MODEL", help=text)
    arguments_lib.add_dtype(serve)
    show = add("demo", "Train a small CLIP, VQGAN and DALL-E; search, reconstruct, draw and paint.", demo.run)
    show.add_argument("--data", default="shapes", choices=command.DEMOS, help="what is shown (default shapes)")
    show.add_argument("--workdir", help="output directory (default runs/demo, or runs/emoji)")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from multimodal_jax.serve import page
    from multimodal_jax.serve.models import Models
    from multimodal_jax.serve.runs import find_runs

    named = {kind: getattr(arguments, kind) for kind in _NAMED}
    page.serve(Models(find_runs(arguments.runs, named), arguments.dtype), arguments.host, arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())

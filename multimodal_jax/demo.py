"""The demo of all models: the four parts of `make demo`, one after the other."""

import argparse
import subprocess
import sys

from train_jax import command

# Module -> what it does, and the picture that it leaves in the working directory.
PARTS = {
    "clip_jax.demo": ("CLIP learns images with their captions, and searches", "search.png"),
    "vqgan_jax.demo": ("VQGAN learns to write images as codes", "reconstructions.png"),
    "dalle_jax.demo": ("DALL-E learns to draw what a sentence says", "drawings.png"),
    "vqgan_jax.guided.demo": ("CLIP guides paintings", "painting.png"),
}


def run(arguments: argparse.Namespace) -> int:
    """Runs the parts, each in a process of its own, whose memory is free for the next one, and announces each.

    Returns the exit code of the first part that fails, or 0.
    """
    options = ["--data", arguments.data] + (["--workdir", arguments.workdir] if arguments.workdir else [])
    demo = command.open_demo(arguments.data)
    workdir = arguments.workdir or demo.RUNS
    for index, (part, (text, picture)) in enumerate(PARTS.items()):
        minutes = demo.MINUTES[index:]
        times = f" (about {minutes[0]} minutes, of {sum(minutes)} from here)" if minutes else ""
        print(f"\npart {index + 1} of {len(PARTS)}: {text}{times}: {workdir}/{picture}, {workdir}/index.html", flush=True)
        code = subprocess.run([sys.executable, "-m", part, *options], check=False).returncode
        if code:
            return code
    return 0

"""Checks of a request before models are loaded, and hashes of its input files."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from train_jax.errors import UserError
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.cli.request import PaintRequest


def validate(request: PaintRequest, outputs: Sequence[str | None]) -> dict[str, str]:
    """Validates a request before models are loaded, and hashes its input files.

    Args:
      outputs: paths of the output files.

    Returns the SHA-256 of each input file, as `metadata.hash_files`.
    """
    from vqgan_jax.guided import animation, painting, stopping, targets
    from vqgan_jax.guided.prompts import parse, parse_scene

    run, cells = request.run, [options_lib.resolve(options) for options in request.cells]
    painting.check_request(run["seed"], run["n"], run["prompts"])
    targets.resolve_clip_weights(run["clip_weights"], len(run["clip"]))
    parsed = [(parse if request.motion else parse_scene)(prompt) for prompt in run["prompts"]]
    if not request.motion:
        for scene, options in itertools.product(parsed, cells):
            stopping.settled_step(scene, options)
    else:
        motion, scenes = animation.Motion(**request.motion), parsed[0]
        animation.check_time(motion, scenes)
        if motion.frames is not None:
            motion.by_frame(len(scenes))
            animation.expression_weights(scenes, motion)
    files = _hash_files(request)
    output_paths = {Path(path).resolve() for path in outputs if path}
    for path in files:
        if Path(path).resolve() in output_paths:
            raise UserError(f"{path} is an input file: choose another output file")
    return files


def _hash_files(request: PaintRequest) -> dict[str, str]:
    """Hashes the input files of a request."""
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.prompts import parse

    scenes = [scene for prompt in request.run["prompts"] for scene in parse(prompt)]
    hashes = {}
    for options in map(options_lib.resolve, request.cells):
        hashes |= metadata.hash_files(options, scenes)
        hashes |= {options.prior.prior: metadata.hash_run(options.prior.prior)} if options.prior else {}
    for name in ("video_in", "sound"):
        if name in request.motion:
            hashes |= metadata.hash_frames(request.motion[name])
    return hashes

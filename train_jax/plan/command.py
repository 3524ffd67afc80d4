"""Plans a training run before the machine is rented: memory, time and communication of the compiled step.

    train-jax plan --config=clip/vit_b32 --target=v5e:4x4
    train-jax plan --config=dalle/mindalle_1b3 --target=h100:8 --config.vqgan.path=vqgan/f16_16384 --json
    train-jax plan --config=clip/vit_l14 --target=fake:8 --mesh=fsdp=4,data=2
    train-jax plan --what=sample --config=dalle/mindalle_1b3 --target=h100:8 --config.vqgan.path=vqgan/f16_16384 \
        --sample.images=64 --sample.guided=true
    train-jax plan --what=imagine --config=unclip/karlo_decoder --target=h100:1 --config.clip.path=clip/vit_l14
    train-jax plan --what=paint --config=vqgan/f16_1024 --target=v5e:2x2 --paint.clip=clip/vit_b32 --paint.cuts=32

The real step is compiled for devices that need not be present, or, with --what, the programs for inference: `encode` of
CLIP and VQGAN, `sample` of DALL-E and priors, `imagine` of unCLIP, `paint` by a VQGAN and a CLIP. Their options are written
--WHAT.NAME=VALUE.

    train-jax plan --search --config=clip/vit_b32 --target=v5e:4x4 --max-plans=6

tries meshes, rematerialisation and micro-batches, except those given, and prints the command line of the fastest that fits.
With --json it prints a line of options and plan for each, and last a line of the ranking, the best first, and the command.

A missing file that CONFIG names is replaced by a placeholder: a tokenizer, the weights of LPIPS, or a VQGAN or CLIP by the
name of its shipped config. TPU slices need the extra [tpu], GPUs the packages jax-cuda12-plugin, jax-cuda12-pjrt and
nvidia-cudnn-cu12, in an environment of their own (Python 3.12). Fake devices need nothing, and tell the memory of a CPU's
program.
"""

import argparse
import json
import logging
import math
import shlex
import sys

from ml_collections import ConfigDict

from train_jax import config_file
from train_jax.arguments import expand_home
from train_jax.data.errors import BrokenSample
from train_jax.errors import ConfigError, UserError
from train_jax.plan.report import Plan
from train_jax.plan.targets import EXAMPLES, GPU_PACKAGES, Target
from train_jax.sharding import AXES

_MAX_PLANS = 12


def main(argv: list[str]) -> int:
    """Runs `train-jax plan`. Returns the exit code: 0, 1 if the run does not fit, 2 for a user error."""
    parser = argparse.ArgumentParser(
        "train-jax plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="config file or name, such as clip/shapes")
    parser.add_argument("--target", required=True, help=EXAMPLES)
    parser.add_argument("--what", default="train", help="program to plan: train (default), encode, sample, imagine or paint")
    parser.add_argument("--mesh", help="sizes of the mesh axes, such as fsdp=4,data=-1; missing axes have size 1")
    parser.add_argument("--machine", metavar="NAME", help=f"machine preset: {', '.join(config_file.machines())}, or a file")
    parser.add_argument("--json", action="store_true", help="print the plan as one line of JSON")
    parser.add_argument("--search", action="store_true", help="search for the mesh, remat and micro-batch that are fastest")
    parser.add_argument("--max-plans", type=int, metavar="N", help=f"plans of a search (default {_MAX_PLANS})")
    arguments, words = parser.parse_known_args(expand_home(argv))
    overrides = [word for word in words if word.startswith(config_file.OPTION)]
    options = [word for word in words if arguments.what != "train" and word.startswith(f"--{arguments.what}.")]
    for word in words:
        if word not in (*overrides, *options):
            parser.error(f"unexpected argument {word!r}: options are written {config_file.OPTION}NAME=VALUE")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        target = Target.parse(arguments.target)
        target.set_environment()
        if arguments.max_plans is not None and not arguments.search:
            raise ConfigError(f"--max-plans={arguments.max_plans} without --search, which alone makes several plans")
        if arguments.mesh and arguments.what != "train":
            raise ConfigError(f"--mesh with --what={arguments.what}: weights are replicated, and devices share the batch")
        if arguments.mesh:
            overrides = [*_parse_mesh(arguments.mesh), *overrides]
        config = config_file.load(arguments.config)
        if arguments.machine:
            config = config_file.on_machine(config, arguments.machine)
        config = config_file.override(config, overrides)
        if arguments.search:
            return _search(config, target, arguments, overrides)
        plans = make_plans(config, target, arguments.what, options)
    except (UserError, BrokenSample, OSError) as error:
        print(f"train-jax plan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        remedy = f"pip install {GPU_PACKAGES}"
        print(f"train-jax plan: error: there is no cuDNN, which has fused attention: {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train-jax plan: interrupted", file=sys.stderr)
        return 130
    print("\n\n".join(map(str, plans)) if not arguments.json else "\n".join(plan.to_json() for plan in plans))
    return 1 if any(plan.fits is False for plan in plans) else 0


def make_plans(config: ConfigDict, target: Target, what: str, options: list[str]) -> list[Plan]:
    """Plans the training step of a config, or the programs `what` of its task with their options `--WHAT.NAME=VALUE`."""
    from train_jax.plan.compilation import plan_program
    from train_jax.plan.inference import trace_inference
    from train_jax.plan.training import trace_training

    programs = [trace_training(config, target)] if what == "train" else trace_inference(config, target, what, options)
    return [plan_program(program, target) for program in programs]


def _search(config: ConfigDict, target: Target, arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `--search` and prints its table and best command, or both as JSON. Returns the exit code.

    Ctrl-C ends it with the table of what is finished.
    """
    from train_jax.plan import search

    if arguments.what != "train":
        raise ConfigError(f"--search with --what={arguments.what}: only the training step has options to search for")
    max_plans = _MAX_PLANS if arguments.max_plans is None else arguments.max_plans
    if max_plans < 1:
        raise ConfigError(f"--max-plans={max_plans}; it must be at least 1")
    stated = [word.removeprefix(config_file.OPTION).partition("=")[0] for word in overrides]
    fixed = {"mesh" if name.startswith("mesh.") else name for name in stated}
    candidates = search.list_candidates(config, math.prod(target.shape), sorted(fixed & set(search.OPTIONS)))
    command = [f"--config={arguments.config}", f"--target={arguments.target}"]
    command += [f"--machine={arguments.machine}"] if arguments.machine else []
    command += overrides
    rows, is_interrupted = [], False
    try:
        for candidate, plan in search.search(candidates, lambda words: search.run_plan([*command, *words]), max_plans):
            rows.append((candidate, plan))
            if arguments.json:
                print(json.dumps({"options": candidate.words} | plan), flush=True)
    except KeyboardInterrupt:
        is_interrupted = True
        print("train-jax plan: interrupted; these are finished:", file=sys.stderr)
    ranked, key = search.rank(rows)
    plan = ranked[0][1] if ranked else {}
    fits = "mesh" in plan and plan["fits"] is not False
    words = [word for word in command if not word.startswith("--target=")]
    best = shlex.join(["train-jax", *words, *ranked[0][0].words, "--workdir=DIR"]) if fits else None
    if arguments.json:
        print(json.dumps({"ranked_by": key, "ranking": [candidate.words for candidate, _ in ranked], "command": best}))
    else:
        print(search.format_table(ranked))
        if key == "peak_bytes":
            print("ranked by memory: the compiler of this target estimates no times")
        print(f"{len(rows)} of {len(candidates)} settings were planned")
        if fits:
            print(best)
    return 130 if is_interrupted else 0 if fits else 1


def _parse_mesh(text: str) -> list[str]:
    """Parses `--mesh` to overrides of `config.mesh`. Raises ConfigError for another form."""
    sizes = dict.fromkeys(AXES, "1")
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.removeprefix("-").isdigit():
            raise ConfigError(f"--mesh {text!r} must be AXIS=SIZE,… with an axis of {', '.join(AXES)}")
        sizes[axis] = size
    return [f"{config_file.OPTION}mesh.{axis}={size}" for axis, size in sizes.items()]

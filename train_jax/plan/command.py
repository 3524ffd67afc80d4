"""Plans a training run before the machine is rented: memory, time and communication of the compiled step.

    train-jax plan --config=clip/vit_b32 --target=v5e:4x4
    train-jax plan --config=dalle/mindalle_1b3 --target=h100:8 --config.vqgan.path=vqgan/f16_16384 --json
    train-jax plan --config=clip/vit_l14 --target=fake:8 --mesh=fsdp=4,data=2

The real step is compiled for devices that need not be present. A missing file that CONFIG names is replaced by a
placeholder: a tokenizer, the weights of LPIPS, or a VQGAN by the name of its shipped config. TPU slices need the extra
[tpu], GPUs the packages jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cudnn-cu12, in an environment of their own (Python
3.12). Fake devices need nothing, and tell the memory of a CPU's program.
"""

import argparse
import logging
import sys

from train_jax import config_file
from train_jax.arguments import expand_home
from train_jax.errors import ConfigError, LoadError
from train_jax.plan.targets import EXAMPLES, GPU_PACKAGES, Target
from train_jax.sharding import AXES


def main(argv: list[str]) -> int:
    """Runs `train-jax plan`. Returns the exit code: 0, 1 if the run does not fit, 2 for a user error."""
    parser = argparse.ArgumentParser(
        "train-jax plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="config file or name, such as clip/shapes")
    parser.add_argument("--target", required=True, help=EXAMPLES)
    parser.add_argument("--mesh", help="sizes of the mesh axes, such as fsdp=4,data=-1; missing axes have size 1")
    parser.add_argument("--machine", metavar="NAME", help=f"machine preset: {', '.join(config_file.machines())}, or a file")
    parser.add_argument("--json", action="store_true", help="print the plan as one line of JSON")
    arguments, overrides = parser.parse_known_args(expand_home(argv))
    for word in overrides:
        if not word.startswith(config_file.OPTION):
            parser.error(f"unexpected argument {word!r}: options are written {config_file.OPTION}NAME=VALUE")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        target = Target.parse(arguments.target)
        target.set_environment()
        config = config_file.load(arguments.config)
        if arguments.machine:
            config = config_file.on_machine(config, arguments.machine)
        if arguments.mesh:
            overrides = [*_parse_mesh(arguments.mesh), *overrides]
        config = config_file.override(config, overrides)
        from train_jax.plan.training import plan_training

        plan = plan_training(config, target)
    except (ConfigError, LoadError, OSError) as error:
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
    print(plan.to_json() if arguments.json else plan)
    return 1 if plan.fits is False else 0


def _parse_mesh(text: str) -> list[str]:
    """Parses `--mesh` to overrides of `config.mesh`. Raises ConfigError for another form."""
    sizes = dict.fromkeys(AXES, "1")
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.removeprefix("-").isdigit():
            raise ConfigError(f"--mesh {text!r} must be AXIS=SIZE,… with an axis of {', '.join(AXES)}")
        sizes[axis] = size
    return [f"{config_file.OPTION}mesh.{axis}={size}" for axis, size in sizes.items()]

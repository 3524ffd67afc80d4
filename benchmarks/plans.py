"""Plans every published config for machines that need not be present, by `train-jax plan`, and prints a table.

    python -m benchmarks.plans --json=plans.json
    python -m benchmarks.plans --json=plans.json --targets v5e:4x4 --configs clip/vit_b32 clip/rn50     (updates these rows)
    python -m benchmarks.plans --json=plans.json --configs                                        (prints the table again)

Needs Python 3.12 with `jax[tpu]` for TPU slices, or jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cudnn-cu12 for GPUs; no
device, no data, no weights. Each plan compiles in a process of its own, for half a minute to some minutes.
"""

import argparse
import itertools
import json
from pathlib import Path

from train_jax import paths
from train_jax.plan.search import run_plan

# Options that name the configs of frozen models.
FROZEN = {
    "dalle/mindalle_1b3": ["--config.vqgan.path=vqgan/f16_16384", "--config.vqgan.size=256"],
    "dalle/dalle1_12b": ["--config.vqgan.path=vqgan/f8_gumbel", "--config.vqgan.size=256"],
    "unclip/karlo_prior": ["--config.clip.path=clip/vit_l14"],
    "unclip/karlo_decoder": ["--config.clip.path=clip/vit_l14"],
}
CONFIGS = ("clip/vit_b32", "clip/vit_b16", "clip/vit_l14", "clip/siglip_b16", "clip/rn50", "vqgan/f16_1024",
           "vqgan/f16_16384", "vqgan/f8_gumbel", *FROZEN, "unclip/karlo_upsampler")  # fmt: skip
TARGETS = ("h100:8", "v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:4x4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--configs", nargs="*", default=CONFIGS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of all plans, whose rows are replaced")
    parser.add_argument("--timeout", type=float, default=12, help="minutes after which a plan is given up (default 12)")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.is_file() else {}
    for target, config in itertools.product(arguments.targets, arguments.configs):
        rows[f"{target} {config}"] = plan = make_plan(target, config, 60 * arguments.timeout)
        print(format_row(target, config, plan), flush=True)
        if arguments.json:
            paths.write_atomically(arguments.json, lambda stream: stream.write(json.dumps(rows, indent=1).encode()))
    columns = "target | config | mesh | batch | fits | peak, GiB | ms an update | MFU | collectives, GiB | fused attention"
    print(f"\n| {columns} |")
    print("| --- " * 10 + "|")
    for name, plan in rows.items():
        print(format_row(*name.split(" ", 1), plan))


def make_plan(target: str, config: str, timeout: float) -> dict:
    """Returns the plan of a config, or `{"error": …}`."""
    return run_plan([f"--target={target}", f"--config={config}", *FROZEN.get(config, [])], timeout)


def format_row(target: str, config: str, plan: dict) -> str:
    """Formats a row of the table."""
    if "mesh" not in plan:
        return f"| {target} | {config} | {plan['error'][:120]} |" + " |" * 7
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    traffic = sum(row["bytes"] for row in plan["collectives"]) / 2**30
    fused = sum(count for name, count in plan["kernels"].items() if "fmha" in name)
    cells = [target, config, mesh, f"{plan['batch_size']:,}", {True: "yes", False: "no"}.get(plan["fits"], "")]
    cells += [f"{plan['peak_bytes'] / 2**30:.2f}", f"{1000 * plan['step_seconds']:,.0f}" if plan["step_seconds"] else ""]
    cells += [f"{100 * plan['mfu']:.1f} %" if plan["mfu"] else "", f"{traffic:.2f}", f"{fused:,}" if fused else ""]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

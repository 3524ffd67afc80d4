"""Codes and samples of all hosts of a job, and their errors when one of them fails.

python drive_hosts.py FOLDER OUT COORDINATOR PROCESSES INDEX

FOLDER: that of the fixture `tiny`.
"""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def config(folder: Path, codes: Path):
    from train_jax import config as config_lib

    c = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["tiny_config"](folder)
    c.codes = {"dir": str(codes)}
    sampling = {"batch_size": 6, "guidance": 2.0, "top_k": 5, "seed": 3}
    c.evals = {
        "test": {"type": "likelihood", "batch_size": 128},
        "look": {"type": "samples", "conditions": ("one", "the digit two", "one", "seven", ""), "n": 3, **sampling},
    }
    return config_lib.resolve(c)


def figures(folder: Path, codes: Path) -> dict[str, np.ndarray]:
    """Evaluates a DALL-E and a prior, with weights split over a mesh of all devices."""
    import flax.linen as nn
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import dalle_jax
    from dalle_jax import task as dalle_task
    from train_jax import sharding
    from train_jax.evaluation.evaluators import Context
    from vqgan_jax.stage2 import evaluators
    from vqgan_jax.stage2 import model as stage2_model
    from vqgan_jax.stage2.condition import ClassCondition

    settings = config(folder, codes)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 1})
    task = dalle_task.make(settings, folder / "run")
    context = Context(mesh, settings)
    trained = dalle_jax.load(folder / "run")

    def split(x):
        x = np.asarray(x)
        spec = P("fsdp") if x.ndim and x.shape[0] % 2 == 0 else P()
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])

    condition = ClassCondition(10)
    options = stage2_model.CodeTransformerOptions(width=16, depth=1, heads=2)
    module = stage2_model.build(options, condition, trained.vqgan.num_codes, trained.grid)
    empty = np.zeros((1, 1), np.int32), np.zeros((1, module.length), np.int32)
    prior_params = nn.unbox(jax.jit(module.init)(jax.random.key(0), *empty))["params"]
    sample = evaluators.EVALUATORS["samples"].defaults()
    sample.update({"rows": 11, "n": 1, "batch_size": 4, "top_p": 0.9})
    prior = evaluators.EvaluatedModel(module, condition, trained.vqgan, unused)
    params, prior_params = ({"generator": jax.tree.map(split, x)} for x in (trained.variables, prior_params))
    with jax.set_mesh(mesh):
        metrics, _ = task.evaluators["likelihood"](settings.evals.test, context)(params, {})
        results = {f"likelihood/{name}": np.asarray(value) for name, value in metrics.items()}
        results |= task.evaluators["samples"](settings.evals.look, context)(params, {})[1]
        metrics, images = evaluators.make_factories(prior)["samples"](sample, context)(prior_params, {})
    return results | {"prior": images["samples"], "prior/distinct": np.asarray(metrics["distinct_codes"])}


def unused(*arguments):
    raise AssertionError("samples need no records")


class Watched(Sequence):
    """Records of which one host cannot read any, if `fails`."""

    def __init__(self, records: Sequence, fails: bool):
        self.records, self.fails, self.read = records, fails, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int):
        if self.fails:
            raise OSError("the disk is gone")
        self.read += 1
        return self.records[index]


def failures(folder: Path, codes: Path, index: int) -> list:
    """Returns this host's error if host 1 fails, the records it then reads, and its error without a shared directory."""
    import vqgan_jax
    from train_jax.data import sources
    from vqgan_jax.codes import with_codes

    vq = vqgan_jax.load(folder / "vqgan.safetensors")
    source = sources.open_source("digits", "test", data_dir=str(folder / "data"))
    results = []
    for fails, where in ((index == 1, codes), (False, codes), (False, codes / f"of-host-{index}")):
        records = Watched(source, fails)
        try:
            with_codes(vq, sources.Source("watched", records), where)
            results.append(records.read)
        except (OSError, ValueError) as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


if __name__ == "__main__":
    from train_jax import distributed

    folder, out, *job = sys.argv[1:]
    distributed.initialize(job[0], int(job[1]), int(job[2]))
    from train_jax import precompute

    precompute._PART, precompute._POLL, precompute._VISIBLE, precompute._PROBES = 32, 0.05, 0.2, 2
    result = figures(Path(folder), Path(out) / "codes")
    np.savez(Path(out) / f"figures-{job[2]}.npz", **result)
    (Path(out) / f"failures-{job[2]}.json").write_text(
        json.dumps(failures(Path(folder), Path(out) / "codes", int(job[2])))
    )

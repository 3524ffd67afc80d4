"""Comparison of runs: tables, curves, summaries over seeds, plots; also of unfinished, failed and damaged runs.

    from train_jax import runs
    frame = runs.table("runs/lr")                            # pandas: what differs, metrics, time, memory, versions
    runs.summary(frame, "test/top1", by=["optim.lr"], baseline={"optim.lr": 1e-3})
    runs.plot_curves("runs/lr", "loss", by=["optim.lr"]).savefig("loss.png")
    print(runs.compare("runs/lr/0", "runs/lr/1"))

`train-jax runs` is the same on the command line.
"""

import importlib

_MODULES = {
    "Run": "read",
    "find_runs": "read",
    "read_run": "read",
    "curves": "tables",
    "table": "tables",
    "summary": "summaries",
    "compare": "comparison",
    "plot_curves": "plots",
    "plot_grid": "plots",
    "plot_pareto": "plots",
}
__all__ = [*_MODULES]


def __getattr__(name: str):
    # Lazy imports: reading runs needs no pandas, SciPy and Matplotlib, whose imports take seconds.
    if name in _MODULES:
        return getattr(importlib.import_module(f"train_jax.runs.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'train_jax.runs' has no attribute {name!r}")

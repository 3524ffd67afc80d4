"""Trainer for all models: one training loop, one sharded step, one run directory.

    import train_jax
    history = train_jax.run(config, "runs/clip-shapes")      # what `python -m train_jax` calls

Data flows one way: sources -> pipeline -> task -> step -> run directory. This package is independent of any model: a
model package provides a `Task` (see `train_jax.task`), and the config names it.
"""

__all__ = ["run"]


def __getattr__(name: str):
    # Lazy import: loading a model needs only the data modules of this package, not the trainer.
    if name == "run":
        from train_jax.train import run

        return run
    raise AttributeError(f"module 'train_jax' has no attribute {name!r}")

"""Steps, optimiser and memory."""

import dataclasses

from train_jax.options import option
from vqgan_jax.guided.options.group import Group, traced_option

QUALITIES = {
    "draft": {"steps": 100, "cuts": 8},
    "normal": {"steps": 300, "cuts": 32},
    "better": {"steps": 400, "cuts": 48},
    "best": {"steps": 500, "cuts": 64},
}
OPTIMIZERS = ("adam", "amsgrad", "nadam", "radam", "adagrad", "rmsprop", "lion", "sgd")
_MAX_STEPS = 10**6


@dataclasses.dataclass(frozen=True)
class Schedule(Group):
    """Optimisation schedule"""

    quality: str = option(
        "normal", "preset of steps and cuts; explicit values override it", choices=tuple(QUALITIES), identity=False
    )
    steps: int = option(QUALITIES["normal"]["steps"], "number of optimisation steps", least=1, most=_MAX_STEPS)
    save_every: int = option(50, "number of steps between snapshots", least=1, most=_MAX_STEPS, identity=False)


@dataclasses.dataclass(frozen=True)
class Optimization(Group):
    """Optimiser"""

    optimizer: str = option("adam", "optimiser of optax", choices=OPTIMIZERS)
    lr: float = traced_option(0.1, "learning rate", above=0)
    average: float = traced_option(
        0.0, "decay of the moving average of the latents or parameters, which is rendered; 0: off", least=0, most=0.9999
    )


@dataclasses.dataclass(frozen=True)
class RateDecay(Group):
    """Decay of the learning rate"""

    needs = {"lr_decay": ()}

    lr_decay: float = traced_option(1.0, "factor on the learning rate in the last part of the steps", above=0)
    lr_decay_at: float = traced_option(0.75, "fraction of the steps after which lr_decay applies", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class RateDrops(Group):
    """Drops of the learning rate"""

    needs = {"lr_drops": ()}

    lr_drops: tuple[int, ...] = option((), "steps at which the learning rate drops, separated by commas", least=1)
    lr_drop: float = traced_option(0.1, "factor on the learning rate at each of lr_drops", above=0)


@dataclasses.dataclass(frozen=True)
class AutoStop(Group):
    """Stopping before the last step"""

    needs = {"stop_after": ()}

    stop_after: int = traced_option(0, "steps without a better loss after which a painting stops; 0: never", least=0)
    stop_share: float = traced_option(
        0.01, "share of the best loss by which a loss must be below it to be better", least=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class Memory(Group):
    """Memory"""

    excludes = {"memory": ("micro_cuts", "remat")}

    memory: float | None = option(
        None, "memory budget of a step in GiB per device; cutouts are split to fit", above=0, identity=False
    )
    micro_cuts: int = option(
        0, "number of cutouts that CLIP encodes at a time; 0: all", least=0, most=10**5, identity=False
    )
    remat: bool = option(False, "rematerialisation of the decoder in the backward pass, to save memory", identity=False)

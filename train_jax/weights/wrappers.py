"""What trainers put in front of the names of a model's tensors, taken off."""

from collections.abc import Mapping

from train_jax.errors import LoadError
from train_jax.weights.tensors import Tensor

_COMPILED = "_orig_mod."  # torch.compile's, in front of whatever part was compiled


def unwrap(tensors: Mapping[str, Tensor], anchor: str, where: str) -> dict[str, Tensor]:
    """The tensors of the model that has one named `anchor`, under the model's own names.

    What stands before `anchor` in the file (`module.` of PyTorch's data parallelism, `state_dict.model.` of Lightning, …) is
    taken off; tensors beside the model (an optimizer's) are left out. Without an `anchor`, nothing is taken off.

    Raises LoadError where several models lie in the file (an average beside the weights, a teacher beside its student).
    """
    tensors = {name.replace(_COMPILED, ""): x for name, x in tensors.items()}
    prefixes = sorted(prefix for name in tensors if (prefix := _before(anchor, name)) is not None)
    if len(prefixes) > 1:
        raise LoadError(
            f"{where} holds {len(prefixes)} models, under {', '.join(map(repr, prefixes))}: save the one that is meant in a "
            "file of its own"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def holds(tensors: Mapping[str, Tensor], anchor: str) -> bool:
    """Whether one of the tensors is named `anchor`, whatever a trainer has put in front."""
    return any(_before(anchor, name.replace(_COMPILED, "")) is not None for name in tensors)


def _before(anchor: str, name: str) -> str | None:
    return name.removesuffix(anchor) if name == anchor or name.endswith(f".{anchor}") else None

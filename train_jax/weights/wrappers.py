"""Removal of prefixes that trainers add to the names of a model's tensors."""

from collections.abc import Mapping

from train_jax.errors import LoadError
from train_jax.weights.tensors import Tensor

_COMPILED = "_orig_mod."  # prefix that torch.compile adds to compiled modules


def unwrap(tensors: Mapping[str, Tensor], anchor: str, where: str) -> dict[str, Tensor]:
    """Selects the tensors of the model that contains the tensor `anchor`, and removes the prefix of their names.

    Prefixes are `module.` of PyTorch's data parallelism, `state_dict.model.` of Lightning, and so on. Tensors without the
    prefix (such as optimiser states) are left out. If no tensor is named `anchor`, the prefix is empty.

    Raises LoadError if the file holds several models (such as weights and their average, or teacher and student).
    """
    tensors = {name.replace(_COMPILED, ""): x for name, x in tensors.items()}
    prefixes = sorted(prefix for name in tensors if (prefix := _before(anchor, name)) is not None)
    if len(prefixes) > 1:
        raise LoadError(
            f"{where} holds {len(prefixes)} models, under {', '.join(map(repr, prefixes))}: save the one to load in a "
            "separate file"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def holds(tensors: Mapping[str, Tensor], anchor: str) -> bool:
    """Returns whether a tensor is named `anchor`, with any prefix."""
    return any(_before(anchor, name.replace(_COMPILED, "")) is not None for name in tensors)


def _before(anchor: str, name: str) -> str | None:
    """Returns the prefix of a name that ends with `anchor`; None for other names."""
    return name.removesuffix(anchor) if name == anchor or name.endswith(f".{anchor}") else None

"""Peers that ours is compared with: their names in results, and what to do without them."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


def name_peer(name: str, package: ModuleType) -> str:
    """Returns the name of a peer with the version of its package, such as "PyTorch 2.13.0"."""
    return f"{name} {package.__version__.partition('+')[0]}"


@contextlib.contextmanager
def skipped_if_missing() -> Iterator[None]:
    """Ends the enclosed block where it imports a peer that is not installed, and prints how to install it."""
    try:
        yield
    except (ImportError, AttributeError) as error:  # transformers raises AttributeError for models that it has no more
        if isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") != "transformers":
            raise
        print(f"a peer is not installed ({error}): pip install -e '.[peers]'", file=sys.stderr)

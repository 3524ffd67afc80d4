"""Empty modules in place of what a peer's files import and do not use for the numbers made here."""

import sys
import types


def stub(name: str, **attributes) -> None:
    """`import name` gives a module with these attributes; so do `import` statements of its parents."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            if count > 1:
                setattr(sys.modules[".".join(parts[: count - 1])], parts[count - 1], sys.modules[path])
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)
        if isinstance(value, type):
            value.__module__ = name

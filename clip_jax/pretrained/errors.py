"""The error of everything that opens models."""


class LoadError(ValueError):
    """What was given is no model that can be opened, or its parts do not belong together."""

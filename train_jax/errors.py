"""What a user can get wrong; command lines show these in one line, without a traceback."""


class ConfigError(ValueError):
    """An option that is unknown, of the wrong type, out of range, or at odds with the machine or the run directory."""


class LoadError(ValueError):
    """What was given is no model that can be opened, or its parts do not belong together."""


class UserError(ValueError):
    """Arguments of a command that parse and cannot be."""

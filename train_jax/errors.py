"""What a user can get wrong in a config; the command line shows it in one line, without a traceback."""


class ConfigError(ValueError):
    """An option that is unknown, of the wrong type, out of range, or at odds with the machine or the run directory."""

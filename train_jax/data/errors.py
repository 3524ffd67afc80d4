"""Data errors: of single samples, or of a whole data set."""

from train_jax.errors import UserError


class BrokenSample(Exception):
    """Unusable sample; the message names the sample and the reason. Pipelines count and replace broken samples."""


class DataError(UserError):
    """Unusable data set: no data, missing captions, or too many broken samples."""


# What command lines print in one line: also losses that are not finite, and files that cannot be read or written.
USER_ERRORS = (UserError, BrokenSample, FloatingPointError, OSError)

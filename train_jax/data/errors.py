"""Data errors: of single samples, or of a whole data set."""


class BrokenSample(Exception):
    """Unusable sample; the message names the sample and the reason. Pipelines count and replace broken samples."""


class DataError(ValueError):
    """Unusable data set: no data, missing captions, or too many broken samples."""

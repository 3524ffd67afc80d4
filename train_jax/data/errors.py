"""Errors of data: of one sample, or of all of it."""


class BrokenSample(Exception):
    """One sample that cannot be used; the message says which and why. Pipelines count it and take another."""


class DataError(ValueError):
    """Data that cannot be used at all: nothing there, captions missing, or too many broken samples."""

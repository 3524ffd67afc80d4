"""A taste of `make fuzz`: damaged files of every kind meet their readers, and only named errors come out."""

import jaxtyping
import pytest

from tests.fuzz.readers import READERS, fuzz


@pytest.fixture
def annotations_unchecked():
    """As users run it: a wrong type is for the reader to name."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_readers_raise_named_errors_alone(annotations_unchecked):
    assert not fuzz(10 * len(READERS))


def test_an_unnamed_error_would_be_seen(annotations_unchecked, monkeypatch):
    def read(file):
        raise KeyError(file)

    monkeypatch.setitem(READERS, "text", (".txt", lambda: [b"a"], read, False))
    assert list(fuzz(3, only="text")) == ["text"]

"""Some records of a collection."""

import numpy as np
import pytest

from train_jax.data.subset import Subset, first

RECORDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("places", [[2, 0, 2], np.array([2, 0, 2])])
def test_a_subset_is_the_records_at_its_places(places):
    subset = Subset(RECORDS, places)
    assert len(subset) == 3 and list(subset) == ["c", "a", "c"]


@pytest.mark.parametrize("count, expected", [(0, RECORDS), (2, ["a", "b"]), (9, RECORDS)])
def test_the_first_records(count, expected):
    assert list(first(RECORDS, count)) == expected


def test_metadata_are_read_without_images():
    class Records(list):
        def metadata(self, index):
            return RECORDS[index] + " without its image"

    assert Subset(Records(RECORDS), [2]).metadata(0) == "c without its image"
    assert Subset(Subset(Records(RECORDS), [3, 2]), [1]).metadata(0) == "c without its image"
    assert Subset(RECORDS, [2]).metadata(0) == "c"  # nothing is separate

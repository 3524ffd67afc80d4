"""A whole model's updates on eight devices are those of one device."""

import numpy as np

from tests.trees import assert_close

EVERYTHING = {"discriminator.norm": "batch", "loss.lecam": 0.1, "loss.r1": 0.1}
EVERYTHING |= {"model.quantizer.type": "ema", "codebook.revive": 2, "codebook.start": "kmeans"}


def test_eight_devices_compute_what_one_does(run_steps):
    (*_, one), on_one = run_steps(EVERYTHING)
    (*_, eight), on_eight = run_steps(EVERYTHING, 8, fsdp=4)  # the batch is split over both axes, parameters over one
    for a, b in zip(on_one, on_eight, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert_close(eight.params, one.params, 1e-5)
    assert_close(eight.extra, one.extra, 1e-5)

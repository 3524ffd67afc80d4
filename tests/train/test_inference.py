"""Batches through a model: one type from the program to the result, few outputs on the devices, shares of several hosts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax import inference


def test_results_have_the_programs_type_and_few_of_them_are_on_the_devices(monkeypatch):
    weights = inference.on_devices({"w": np.float32(2)})
    program = jax.jit(lambda v, x: (v["w"] * x).astype(jnp.uint8))
    calls, fetched = [], []

    def counted(variables, batch):
        assert len(calls) - len(fetched) < 2, "an earlier output is fetched before a third one is made"
        calls.append(batch.shape)
        return program(variables, batch)

    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or get(x))
    rows = np.arange(50, dtype=np.float32)[:, None]
    row = jax.ShapeDtypeStruct((1,), np.float32)
    actual = inference.batched(counted, weights, lambda a, b: rows[a:b], 50, row, 8)
    assert actual.dtype == np.uint8 and len(calls) == 7 and set(calls) == {(8, 1)}
    np.testing.assert_array_equal(actual, 2 * rows)


def test_outputs_are_handed_out_in_order_with_what_belongs_to_them():
    outputs = ((jnp.asarray([i]), i) for i in range(5))
    assert [(int(x[0]), i) for x, i in inference.fetch_overlapped(outputs)] == [(i, i) for i in range(5)]
    assert list(inference.fetch_overlapped(iter(()))) == []


@pytest.mark.parametrize("count", [1, 5, 6])
def test_hosts_share_rows(count, monkeypatch):
    """Each host's part, gathered by hand."""
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(inference.multihost_utils, "process_allgather", lambda x, tiled: shares.append(x) or x)
    rows = np.arange(count)
    for host in range(3):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        inference.split_over_hosts(lambda x: 10 * x, rows)
    assert len({len(share) for share in shares}) == 1, "as a gathering needs"
    assert len(shares[0]) == -(-count // 3)
    np.testing.assert_array_equal(np.concatenate(shares)[:count], 10 * rows)

"""The preflight's choices, with plans that are made up."""

from types import SimpleNamespace
from unittest import mock

import jax
import pytest

from train_jax.errors import ConfigError
from vqgan_jax.guided import memory


def program(total: float):
    analysis = SimpleNamespace(
        argument_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0, temp_size_in_bytes=int(total * 2**30),
        generated_code_size_in_bytes=0,
    )  # fmt: skip
    shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return mock.Mock(spec=jax.stages.Compiled, memory_analysis=lambda: analysis, output_shardings=shardings)


def need(micro_cuts: int, remat: bool) -> float:
    return micro_cuts / 8 + (0.5 if remat else 1.0)


@pytest.mark.parametrize(
    "budget, expected", [(9, (32, False)), (4.6, (32, True)), (4.4, (16, True)), (1, (4, True)), (0.63, (1, True))]
)
def test_the_fastest_that_fits_is_taken(budget, expected):
    tried = []

    def compile_with(micro_cuts, remat):
        tried.append((micro_cuts, remat))
        return program(need(micro_cuts, remat))

    fitted = memory.fit_to_budget(compile_with, 32, 1, budget)
    assert (fitted.micro_cuts, fitted.remat) == expected == tried[-1]
    assert all(need(*split) > budget for split in tried[:-1])
    assert fitted.plan.total == int(need(*expected) * 2**30)


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(ConfigError, match="the most memory-efficient step needs 0.62 GiB. Paint a smaller size"):
        memory.fit_to_budget(lambda *how: program(need(*how)), 32, 1, 0.5)


def test_parts_divide_the_cuts_and_the_devices():
    assert list(memory.candidate_splits(12, 1)) == [(12, False), (12, True), (6, True), (3, True), (1, True)]
    assert list(memory.candidate_splits(32, 8)) == [(32, False), (32, True), (16, True), (8, True)]
    assert list(memory.candidate_splits(7, 2)) == [(7, False), (7, True), (1, True)]

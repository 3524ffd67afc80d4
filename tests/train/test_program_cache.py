"""The cache of compiled programs: where it is enabled, and that it is used by programs compiled afterwards."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from train_jax import program_cache


@pytest.fixture
def without_cache(monkeypatch, tmp_path):
    """JAX as it starts without a cache's folder; the user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield tmp_path / "train_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


def test_programs_are_cached_although_one_was_compiled_before(without_cache):
    jax.jit(lambda x: x + 1)(jnp.ones(3))
    program_cache.enable("tpu")
    assert jax.config.jax_compilation_cache_dir == str(without_cache)
    jax.jit(lambda x: x * 2.5 + 7)(jnp.ones(3))
    assert any(without_cache.iterdir())


@pytest.mark.parametrize(
    "platform, hosts, enabled", [("cpu", 1, False), ("gpu", 1, True), ("gpu", 2, False), ("tpu", 2, True)]
)
def test_where_programs_are_cached(without_cache, monkeypatch, platform, hosts, enabled):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    program_cache.enable(platform)
    assert (jax.config.jax_compilation_cache_dir == str(without_cache)) == enabled


def test_the_users_folder_and_refusal_win(without_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    program_cache.enable("tpu")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    program_cache.enable("tpu")
    jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None

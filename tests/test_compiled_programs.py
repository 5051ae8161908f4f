"""What a kill leaves of jax's cache of compiled programs."""

import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from orthus_jax.parallel import compiled_programs


@pytest.fixture
def cache(tmp_path, monkeypatch):
  before = {n: getattr(jax.config, n) for n in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}
  monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
  compilation_cache.reset_cache()
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def compile_again():
  jax.clear_caches()

  def some_program(x):
    return jnp.tanh(x @ x)

  jax.jit(some_program)(jnp.ones((4, 4))).block_until_ready()


def test_half_an_entry_is_written_anew(cache, caplog):
  compile_again()
  (entry,) = cache.glob("jit_some_program-*-cache")
  whole, others = entry.read_bytes(), {f: f.read_bytes() for f in cache.iterdir() if f != entry}
  with warnings.catch_warnings(), caplog.at_level("INFO"):
    warnings.simplefilter("always")
    compiled_programs.keep_whole()
    compiled_programs.keep_whole()  # once is enough
    entry.write_bytes(whole[: len(whole) // 2])
    compile_again()
    assert len(entry.read_bytes()) > len(whole) // 2 and "had been cut short" in caplog.text
    caplog.clear()
    compile_again()
  assert not caplog.text and {f: f.read_bytes() for f in others} == others


def test_other_warnings_are_shown(cache, monkeypatch):
  seen = []
  monkeypatch.setattr(warnings, "showwarning", lambda *a: seen.append(str(a[0])))
  compiled_programs.keep_whole()
  (cache / "jit_f-12-cache").write_bytes(compiled_programs._ZSTD + b"what can't be judged")
  warnings.showwarning(UserWarning("mine"), UserWarning, "f", 1)
  warnings.showwarning(UserWarning(compiled_programs._BROKEN.pattern.replace("(.+?)", "jit_g") + "why"), UserWarning, "f", 1)
  assert seen[0] == "mine" and seen[1].startswith("Error reading") and (cache / "jit_f-12-cache").exists()

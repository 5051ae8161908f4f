"""What programs ask of their platform's compiler, beyond what it does by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import os
import re
import threading
from typing import Any

import jax
from jax.sharding import Mesh

from orthus_jax.errors import BadRequest

# A TPU sums gradients by all-reduces where a mesh axis covers several dimensions of its torus, and unless it is told so waits
# for each. Sums are joined into one only where they are small, as what is joined isn't spread. The names are those of
# `LIBTPU_INIT_ARGS`, and hold above what stands there.
_TPU = {
    "xla_enable_async_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": str(1 << 20),
}
# These spread sums, and the gathers of weights, over the products and elementwise loops beside them (docs/planning.md has what
# that gives). For v5e alone: libtpu 0.0.50 refuses them on other chips, where they may compute wrong results or hang, and
# libtpu 0.0.42 takes them there without a word.
_V5E = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": "true",
}
_V5E_KINDS = ("TPU v5 lite", "TPU v5e")
# v5p and v6e have sparse cores beside the one that multiplies: these do the gathers and the sums meanwhile.
_SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
}
_SPARSE_CORE_KINDS = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")
# XLA 0.10 hands a CPU's products to YNNPACK. A VQGAN's convolutions take 1.4 times as long with it, products of the size of
# benchmarks/train_step.py's 1.1 times, and those of the quickstart's size as long as without (docs/performance.md). Where
# factors are bfloat16 (models/products.py), it alone is fast, and of two rows it takes 0.85 of the time.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}
_LEVEL = "xla_backend_optimization_level"


@functools.cache
def _cpu() -> dict[str, str]:
  """`_CPU`, unless this jaxlib has no such option."""
  try:
    jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU


def options(
    mesh: Mesh, asked: Sequence[tuple[str, str]] = (), *, bfloat16_factors: bool = False
) -> dict[str, str | bool] | None:
  """Options for `jax.jit(compiler_options=)`.

  Args:
    mesh: what the program is for; it is its devices' platform that counts, not this machine's.
    asked: (option, value) pairs that go above ours (run.compiler_options).
    bfloat16_factors: most products are of models/products.py's.
  """
  device = mesh.devices.flat[0]
  ours: dict[str, str] = {}
  if device.platform == "tpu" and mesh.size > 1:
    ours = dict(_TPU)
    if device.device_kind in _V5E_KINDS:
      ours |= _V5E
    elif device.device_kind in _SPARSE_CORE_KINDS:
      ours |= _SPARSE_CORES
  elif device.platform == "cpu" and not bfloat16_factors:
    ours = _cpu()
  switches = {"true": True, "false": False}  # which is how a CPU's compiler wants them
  return {k: switches.get(v.lower(), v) for k, v in {**ours, **dict(asked)}.items()} or None


def options_of_one_call(mesh: Mesh) -> dict[str, int] | None:
  """As `options`, for a program that runs once.

  At LLVM's first level, drawing a model's first parameters compiles in a quarter of the time, to the same bits (jax 0.10.2).
  A level that XLA_FLAGS asks for stays.
  """
  asked = _LEVEL in os.environ.get("XLA_FLAGS", "")
  return {_LEVEL: 1} if mesh.devices.flat[0].platform == "cpu" and not asked else None


class jit:  # noqa: N801
  """`jax.jit` with what this platform's compiler is asked for; jax is asked for its platform when it is first called.

  Not for functions that others under `jax.jit` call. What `trace` gives is compiled by who asked for it, as it wants.

  Args:
    function: to be compiled.
    how: as for `jax.jit`.
  """

  def __init__(self, function: Callable, **how: Any):
    functools.update_wrapper(self, function)
    self._jit = functools.partial(jax.jit, function, **how)

  @functools.cached_property
  def _here(self) -> Any:
    return self._jit(compiler_options=_cpu() if jax.default_backend() == "cpu" else None)

  @functools.cached_property
  def few_rows(self) -> Any:
    """The same for where products are of a few rows alone: without what `_CPU` asks for."""
    return self._jit()

  def __call__(self, *args: Any, **named: Any) -> Any:
    return self._here(*args, **named)

  def lower(self, *args: Any, **named: Any) -> jax.stages.Lowered:
    return self._here.lower(*args, **named)

  def trace(self, *args: Any, **named: Any) -> jax.stages.Traced:
    return self._jit().trace(*args, **named)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
  """Has a compiler's refusal of an option be a bad request.

  Raises:
    BadRequest: naming the option.
  """
  try:
    yield
  except Exception as e:  # jaxlib raises its own class, and differs from version to version
    found = re.search(r"(?:No such compile option: '|While setting option |Failed to parse '.*' into flag )(\w+)", str(e))
    # libtpu from 0.0.50 on, of what it takes on one generation of chips alone.
    refused = re.search(r"(?:not supported|may lead|might lead).*disable it with (\w+)=", str(e), re.DOTALL)
    if refused is not None:
      raise BadRequest(f"run.compiler_options: the compiler refuses {refused.group(1)!r} on these devices: leave it out") from e
    if found is None:
      raise
    raise BadRequest(f"run.compiler_options: the compiler takes no {found.group(1)!r} of this value: leave it out") from e


class Programs:
  """Has each program be compiled once where several threads run it: who comes first is waited for."""

  def __init__(self) -> None:
    self._lock, self._made = threading.Lock(), set[tuple]()

  @contextlib.contextmanager
  def run(self, *program: Any) -> Iterator[None]:
    """Of a program's name and whatever else it was compiled for."""
    if program in self._made:
      yield
      return
    with self._lock:
      yield
      self._made.add(program)

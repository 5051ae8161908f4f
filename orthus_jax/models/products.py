"""Products of float32 whose factors are rounded to bfloat16; sums stay in float32, which is what a TPU does by default.

A CPU with instructions for bfloat16 (AVX512-BF16, AMX) multiplies so three to five times as fast as in float32, if XLA is
given factors in bfloat16 and asked for a result in float32: results in bfloat16 are slower than float32 throughout, the
names of `jax.lax.DotAlgorithmPreset` change nothing on a CPU, and YNNPACK must be left on (jax 0.10.2; docs/performance.md).
It multiplies one row, two, and some other numbers of rows in another order than sixteen: rows are filled up to a multiple
of those, so that a row's results are the same to the last bit whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from orthus_jax.config import Config

_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_NO_FACTORS = ((), ())
_ROWS = 16  # of a tile of AMX
_FEW = 8  # rows, below which products in float32 are the faster ones

# "" leaves products as they are; so does "few", but to another of XLA's libraries (see `parallel.compiler`). "cpu" fills rows
# up and keeps kernels' gradients from what XLA makes slow on one CPU device.
_rounding: contextvars.ContextVar[str] = contextvars.ContextVar("rounding", default="")


def kind(config: Config, devices: Sequence[jax.Device]) -> str:
  """What `rounding` is to be given for a config's training step on some devices; see TransformerConfig.matmul_precision."""
  transformer = config.model.transformer
  cpu, precision = devices[0].platform == "cpu", transformer.matmul_precision
  if config.task != "orthus" or transformer.dtype != "float32" or precision == "default":
    return ""
  if precision == "auto":
    # Several machines, which may differ in this, compile one program.
    alone = len({d.process_index for d in devices}) == 1
    if not (cpu and alone and _cpu_multiplies_bfloat16()):
      return ""
  return "cpu" if cpu and len(devices) == 1 else "anywhere"


def kind_of_batch(config: Config, devices: Sequence[jax.Device], *, rows: int) -> str:
  """As `kind`, for a running batch that has so many rows and guides: "auto" is what is faster for these."""
  transformer = config.model.transformer
  if rows >= _FEW or transformer.matmul_precision == "bfloat16":
    return kind(config, devices)
  return "few" if len(devices) == 1 and devices[0].platform == "cpu" and transformer.dtype == "float32" else ""


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
  """Whether this machine's processor says so; Linux on x86 alone tells."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return False
  return any(_CPU_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))


@contextlib.contextmanager
def rounding(kind: str) -> Iterator[None]:
  """Products that are traced in here are those of this kind (see `kind`)."""
  before = _rounding.set(kind)
  try:
    yield
  finally:
    _rounding.reset(before)


def current() -> str:
  """The kind that holds here."""
  return _rounding.get()


def rounded(x: jax.Array) -> bool:
  """Whether x's products are to have their factors rounded."""
  return _rounding.get() in ("cpu", "anywhere") and x.dtype == jnp.float32


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [..., D] times a kernel [D, ...], both float32, in float32 from factors in bfloat16; so are its gradients."""
  return _dot(x, kernel, _rounding.get() == "cpu")


def matmul(a_NIJ: jax.Array, b_NJK: jax.Array, *, transposed: bool = False) -> jax.Array:
  """Stacks of matrices, [N, I, K] in float32 from factors in bfloat16; `transposed`: b is [N, K, J]. No gradients."""
  return _product(a_NIJ, b_NJK, (2,), (2 if transposed else 1,), batch=((0,), (0,)))


def _product(a: jax.Array, b: jax.Array, a_axes: Any, b_axes: Any, *, batch: Any = _NO_FACTORS) -> jax.Array:
  a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  return jax.lax.dot_general(a, b, ((a_axes, b_axes), batch), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: jax.Array, kernel: jax.Array, cpu: bool) -> jax.Array:
  return _by_rows(x, kernel, cpu)


def _by_rows(x: jax.Array, kernel: jax.Array, cpu: bool) -> jax.Array:
  rows = math.prod(x.shape[:-1])
  if not cpu or rows % _ROWS == 0:
    return _product(x, kernel, (x.ndim - 1,), (0,))
  x_MD = jnp.pad(x.astype(jnp.bfloat16).reshape(rows, -1), ((0, -rows % _ROWS), (0, 0)))
  return _product(x_MD, kernel, (1,), (0,))[:rows].reshape(*x.shape[:-1], *kernel.shape[1:])


def _forward(x: jax.Array, kernel: jax.Array, cpu: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # On a mesh the kernel as it is, and so no second copy of all layers' kernels between the passes, whole on every device.
  kept = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16) if cpu else kernel
  return _by_rows(*kept, cpu), kept


def _backward(cpu: bool, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  rows, outputs = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, g.ndim))
  g = g.astype(jnp.bfloat16)
  to_x = _product(g, kernel, outputs, tuple(range(1, kernel.ndim)))
  if not cpu:
    return to_x, _product(x, g, rows, rows)
  # Of a sum over the first axes XLA makes one in float32, and a transposition it folds into the product, unless something
  # that isn't one, here a row of zeros, stands between them.
  x_MD, g_MX = x.reshape(-1, x.shape[-1]), g.reshape(-1, kernel[0].size)
  to_kernel = _product(jnp.pad(x_MD.T, ((0, 1), (0, 0))), g_MX, (1,), (0,))[:-1]
  return to_x, to_kernel.reshape(kernel.shape)


_dot.defvjp(_forward, _backward)

"""Products of float32 whose factors are rounded to bfloat16; sums stay in float32, which is what a TPU does by default.

A CPU with instructions for bfloat16 (AVX512-BF16, AMX) multiplies so three to five times as fast as in float32, if XLA is
given factors in bfloat16 and asked for a result in float32: results in bfloat16 are slower than float32 throughout, the
names of `jax.lax.DotAlgorithmPreset` change nothing on a CPU, and YNNPACK must be left on (jax 0.10.2; docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import contextvars
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from orthus_jax.config import Config

_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_NO_FACTORS = ((), ())

# "" leaves products as they are. "cpu" chooses the forms that XLA makes fast on one CPU device: of kernels' gradients,
# attention, gates and rotations.
_rounding: contextvars.ContextVar[str] = contextvars.ContextVar("rounding", default="")


def kind(config: Config, mesh: Mesh) -> str:
  """What `rounding` is to be given for a config's training step on a mesh; see TransformerConfig.matmul_precision."""
  transformer, devices = config.model.transformer, mesh.devices.flat
  cpu, precision = devices[0].platform == "cpu", transformer.matmul_precision
  if config.task != "orthus" or transformer.dtype != "float32" or precision == "default":
    return ""
  if precision == "auto":
    # Several machines, which may differ in this, compile one program.
    alone = len({d.process_index for d in devices}) == 1
    if not (cpu and alone and _cpu_multiplies_bfloat16()):
      return ""
  return "cpu" if cpu and mesh.size == 1 else "anywhere"


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


def rounded(x: jax.Array) -> bool:
  """Whether x's products are to have their factors rounded."""
  return bool(_rounding.get()) and x.dtype == jnp.float32


def for_cpu(x: jax.Array) -> bool:
  """Whether x's products are to have their factors rounded, in the forms that are fast on one CPU device."""
  return rounded(x) and _rounding.get() == "cpu"


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [..., D] times a kernel [D, ...], both float32, in float32 from factors in bfloat16; so are its gradients."""
  return _dot(x, kernel, _rounding.get() == "cpu")


def matmul(a_NIJ: jax.Array, b_NJK: jax.Array, *, transposed: bool = False) -> jax.Array:
  """Stacks of matrices, [N, I, K] in float32 from factors in bfloat16; `transposed`: b is [N, K, J]. No gradients."""
  return _product(a_NIJ, b_NJK, (2,), (2 if transposed else 1,), batch=((0,), (0,)))


def apart(x: jax.Array) -> jax.Array:
  """What is transposed to be a factor, [..., M, N], with a row of zeros behind it; drop the product's last row.

  On a CPU, XLA makes a sum over the first axes in float32, and folds a transposition into the product, unless something that
  isn't one stands between them.
  """
  return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)])


def _product(a: jax.Array, b: jax.Array, a_axes: Any, b_axes: Any, *, batch: Any = _NO_FACTORS) -> jax.Array:
  a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  return jax.lax.dot_general(a, b, ((a_axes, b_axes), batch), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: jax.Array, kernel: jax.Array, cpu: bool) -> jax.Array:
  return _product(x, kernel, (x.ndim - 1,), (0,))


def _forward(x: jax.Array, kernel: jax.Array, cpu: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # On a mesh the kernel as it is, and so no second copy of all layers' kernels between the passes, whole on every device.
  kept = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16) if cpu else kernel
  return _product(*kept, (x.ndim - 1,), (0,)), kept


def _backward(cpu: bool, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  rows, outputs = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, g.ndim))
  g = g.astype(jnp.bfloat16)
  to_x = _product(g, kernel, outputs, tuple(range(1, kernel.ndim)))
  if not cpu:
    return to_x, _product(x, g, rows, rows)
  x_MD, g_MX = x.reshape(-1, x.shape[-1]), g.reshape(-1, kernel[0].size)
  to_kernel = _product(apart(x_MD.T), g_MX, (1,), (0,))[:-1]
  return to_x, to_kernel.reshape(kernel.shape)


_dot.defvjp(_forward, _backward)


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) * up. Its gradient works the sigmoid out again, which takes a CPU less time than to write and read it."""
  return jax.nn.silu(gate) * up


def _ungated(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  gate, up = kept
  sigmoid = jax.nn.sigmoid(gate)
  return g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), g * gate * sigmoid


gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _ungated)

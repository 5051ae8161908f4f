"""Products in 8 bits for training. Qwix quantises and multiplies; what is done in which pass is said here.

Axes: D, over which the forward product sums. x is [..., D], a kernel [D, ...].
"""

from __future__ import annotations

import functools
import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest

# Of x and kernels, and of gradients. The floats' source: FP8 Formats for Deep Learning (arXiv 2209.05433).
_DTYPES = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}
PRODUCT_NAME = "product"  # what a remat policy calls a product's result


def check(config: Config, device: Any) -> None:
  """Refuses what a device can't do, and what there is no library for.

  TPUs: what each generation multiplies without casting is in `TpuInfo.is_matmul_supported` of jax.experimental.pallas.tpu (jax
  0.10.2): v5 and v6 int8, and no float8_e4m3fn; from 7 on it is the other way round; v4 and older neither. NVIDIA: float8 from
  compute capability 8.9 (Ada) on. CPUs multiply both, slowly.

  Args:
    config: of the experiment; see TransformerConfig.quantization.
    device: that its steps are to run on, here or described.

  Raises:
    BadRequest: saying what to set instead.
  """
  quantization = config.model.transformer.quantization
  if config.task != "orthus" or quantization == "none":
    return
  field, kind = f"model.transformer.quantization={quantization}", device.device_kind
  if tpu := re.match(r"TPU ?v?(\d+)", kind):
    generation = int(tpu[1])
    if quantization not in (able := {5: ("int8",), 6: ("int8",)}.get(generation, ("fp8",) if generation > 6 else ())):
      raise BadRequest(f"{field}: a {kind} has no such products; set it to {' or '.join((*able, 'none'))}")
  capability = re.fullmatch(r"(\d+)\.(\d+)", getattr(device, "compute_capability", "") if device.platform == "gpu" else "")
  if quantization == "fp8" and capability and (int(capability[1]), int(capability[2])) < (8, 9):
    raise BadRequest(f"{field} needs GPUs of compute capability 8.9 or newer, not {capability[0]}; set it to int8")
  if importlib.util.find_spec("qwix") is None:
    raise BadRequest(f"{field} needs Qwix: pip install 'orthus_jax[quantized]'")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot(x: jax.Array, kernel: jax.Array, quantization: str) -> jax.Array:
  """x [..., D] times a kernel [D, ...] in 8 bits, in x's dtype; see TransformerConfig.quantization."""
  return _forward(x, kernel, quantization)[0]


def _forward(x: jax.Array, kernel: jax.Array, quantization: str) -> tuple[jax.Array, tuple[Any, jax.Array]]:
  dtype, last = _DTYPES[quantization][0], (x.ndim - 1,)
  q_x = _quantize(x, dtype, last)
  y = _product(q_x, _quantize(kernel, dtype, (0,)), last, (0,)).astype(x.dtype)
  # The kernel as it is, and so no second copy of all layers' kernels between the passes, whole on every device.
  return y, (q_x, kernel)


def _backward(quantization: str, kept: tuple[Any, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gradients of x and of the kernel, as if rounding changed nothing (straight-through)."""
  (q_x, kernel), dtype = kept, _DTYPES[quantization][1]
  q_kernel = _quantize(kernel, _DTYPES[quantization][0], (0,))
  rows, outputs = tuple(range(q_x.ndim - 1)), tuple(range(q_x.ndim - 1, g.ndim))
  # A sum over outputs can't take their scales out, so the gradient takes them on before it is quantised; likewise rows.
  g_outputs = g * q_kernel.scale.reshape((1,) * len(rows) + q_kernel.shape[1:])
  x_grad = _product(_quantize(g_outputs, dtype, outputs), q_kernel.qvalue, outputs, tuple(range(1, q_kernel.ndim)))
  if quantization == "int8":  # a sum over all rows, of which a few may be far larger than the rest: not in 8 bits
    x = (q_x.qvalue * q_x.scale).astype(g.dtype)
    kernel_grad = jax.lax.dot_general(x, g, ((rows, rows), ((), ())))
  else:
    g_rows = g * q_x.scale.reshape(*q_x.shape[:-1], *(1,) * len(outputs))
    kernel_grad = _product(q_x.qvalue, _quantize(g_rows, dtype, rows), rows, rows)
  return x_grad.astype(g.dtype), kernel_grad.astype(g.dtype)


dot.defvjp(_forward, _backward)


def _quantize(x: jax.Array, dtype: Any, summed: tuple[int, ...]) -> Any:
  """A qwix.QArray: 8-bit values, and a float32 scale for each place along the axes that aren't summed over."""
  import qwix  # here, as it is an extra

  return qwix.quantize(x.astype(jnp.float32), dtype, channelwise_axes=[a for a in range(x.ndim) if a not in summed])


def _product(a: Any, b: Any, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> jax.Array:
  """The sum over these axes, in float32; of int8 it is exact."""
  import qwix

  return qwix.dot_general(a, b, ((a_axes, b_axes), ((), ())))

"""FLOPs of one instruction of a compiled program: matrix products, convolutions, attention kernels."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
import re

import numpy as np

from orthus_jax.planning import hlo
from orthus_jax.planning.hlo import Array, Instruction

# Matrix products in each of splash attention's kernels: the scores and the output ahead; behind, the scores again, and
# the gradients of scores, values, keys and (in the fused kernel) queries.
_KERNELS = {"fwd": 2, "dkv": 4, "dkv_fused": 5, "dq": 3}


def _axis_pairs(size: int, kernel: int, out: int, stride: int, low: int, base: int, dilation: int) -> int:
  """Pairs of output and kernel places along one axis whose input place holds a value, not padding."""
  at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * dilation - low
  return int(((at >= 0) & (at <= (size - 1) * base) & (at % base == 0)).sum())


@functools.lru_cache(maxsize=4096)
def convolution(out: tuple[int, ...], lhs: tuple[int, ...], rhs: tuple[int, ...], attributes: str) -> float:
  """FLOPs of a convolution; TPU compilers write every matrix product as one."""
  l, r, o = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)[0]
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(f.split("=") for f in window.group(1).split()) if window else {}
  spatial = [c for c in o if c.isdigit()]

  def numbers(field: str, default: int) -> list[int]:
    return [int(n) for n in fields[field].split("x")] if field in fields else [default] * len(spatial)

  pads = (
    [tuple(int(n) for n in p.split("_")) for p in fields["pad"].split("x")]
    if "pad" in fields
    else [(0, 0)] * len(spatial)
  )
  stride, base, dilation = numbers("stride", 1), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)
  pairs = 1
  for c in spatial:
    k = int(c)
    pairs *= _axis_pairs(lhs[l.index(c)], rhs[r.index(c)], out[o.index(c)], stride[k], pads[k][0], base[k], dilation[k])
  grouped = re.search(r"batch_group_count=(\d+)", attributes)
  return (
    2.0 * out[o.index("b")] * out[o.index("f")] * rhs[r.index("i")] * pairs / (int(grouped.group(1)) if grouped else 1)
  )


def dot(out: Array, lhs: Array, attributes: str) -> float:
  """FLOPs of a matrix product."""
  dims = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)[0]
  return 2.0 * out.size * math.prod(lhs.dims[int(d)] for d in dims.split(",") if d)


def causal_share(length: int, block_q: int, block_kv: int) -> float:
  """Share of the blocks of a [length, length] causal mask that hold anything to compute."""
  rows, columns = -(-length // block_q), -(-length // block_kv)
  needed = sum(min(-(-min((i + 1) * block_q, length) // block_kv), columns) for i in range(rows))
  return needed / (rows * columns)


def splash_flops(
    name: str, shapes: Sequence[tuple[tuple[int, ...], str]], results: Sequence[tuple[int, ...]], settings: str
) -> float:
  """FLOPs of one of splash attention's kernels, from its name, its operands' shapes and dtypes, its results' and its settings.

  The kernel skips the blocks above the diagonal and computes the others whole; 0 if it is some other kernel. One that gives
  all gradients at once is known by the queries', which it leaves as a stack of parts.
  """
  found = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", name)
  arrays = [
    dims
    for dims, dtype in shapes
    if len(dims) >= 3 and dtype in ("bf16", "f32", "f16", "bfloat16", "float32", "float16")
  ]
  if not found or len(arrays) < 2:
    return 0.0
  q, k = arrays[:2]
  which = found.group(1)

  def block(field: str) -> int:
    said = re.search(rf'\\*["\']{field}\\*["\']: (\d+)', settings)
    return min(int(said.group(1)) if said else 512, k[-2])

  suffix = {"fwd": "", "dkv": "_dkv", "dq": "_dq"}[which]
  share = causal_share(k[-2], block("block_q" + suffix), block("block_kv" + suffix))
  fused = which == "dkv" and any(len(dims) > len(q) for dims in results)
  return 2.0 * _KERNELS["dkv_fused" if fused else which] * math.prod(q) * k[-2] * share


def kernel(i: Instruction) -> float:
  """FLOPs of a hand-written kernel; 0 if it isn't known."""
  listed = re.search(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}", i.attributes)
  arrays = hlo.arrays(listed.group(1)) if listed else ()
  return splash_flops(
      i.name + i.op_name, [(a.dims, a.dtype) for a in arrays], [a.dims for a in i.arrays], i.attributes
  )

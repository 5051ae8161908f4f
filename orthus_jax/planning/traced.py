"""FLOPs of a program as JAX traces it, ahead of any compiler: all devices together.

Used where the compiled text can't be had. Loops count as often as they run; what the compiler would drop as unused is
counted all the same.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core

from orthus_jax.planning.instruction_flops import splash_flops


def flops(jaxpr: Any) -> float:
  """FLOPs of matrix products, convolutions and attention kernels of a (closed) jaxpr.

  A loop without a known number of rounds counts once; of a conditional, the dearest branch counts.
  """
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  return sum(_equation(e) for e in jaxpr.eqns)


def _equation(e: Any) -> float:
  name, p = e.primitive.name, e.params
  if name == "dot_general":
    (contracting, _), _ = p["dimension_numbers"]
    lhs = e.invars[0].aval.shape
    return 2.0 * math.prod(e.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracting)
  if name == "conv_general_dilated":
    kernel, spec = e.invars[1].aval.shape, p["dimension_numbers"].rhs_spec
    return 2.0 * math.prod(e.outvars[0].aval.shape) * math.prod(kernel) / kernel[spec[0]]
  if name == "scan":
    return p["length"] * flops(p["jaxpr"])
  if name == "while":
    return flops(p["body_jaxpr"])
  if name == "cond":
    return max(flops(b) for b in p["branches"])
  if name == "pallas_call":
    shapes = [(v.aval.shape, v.aval.dtype.name) for v in e.invars]
    results = [v.aval.shape for v in e.outvars]
    name = f"{p.get('name') or ''} {p.get('name_and_src_info', '')}"
    return splash_flops(name, shapes, results, str(p.get("metadata") or ""))
  inner = sum(flops(v) for v in p.values() if isinstance(v, (core.Jaxpr, core.ClosedJaxpr)))
  if name == "shard_map":
    sizes = p["mesh"].shape  # each device does its part of what the body says
    axes = {a for s in p["in_specs"] for part in s for a in ((part,) if isinstance(part, str) else part or ())}
    return inner * math.prod(sizes[a] for a in axes)
  return inner

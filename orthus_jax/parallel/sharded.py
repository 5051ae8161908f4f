"""Computing on a mesh in terms of logical axes: what models call, so that they need know no mesh.

All of these read the mesh that `jax.set_mesh` sets around a trace, and do nothing where there is none, where it has one
device, or within `per_device` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

from orthus_jax.parallel import mesh as mesh_lib

Axes = tuple[str | None, ...]


def current() -> jax.sharding.AbstractMesh | None:
  """The mesh of this trace; None where there is nothing to split."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or any(t == AxisType.Manual for t in mesh.axis_types):
    return None
  return mesh


def platform() -> str:
  """"cpu", "gpu" or "tpu": what a program traced here will run on.

  It is the mesh's platform, not this machine's: ahead of time, a program for TPUs is traced where there is none, under
  `jax.set_mesh` of a mesh of the topology's devices. Only without a mesh is it jax's default backend.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  found = jax.default_backend() if device is None else device.platform
  return "gpu" if found in ("cuda", "rocm") else found


def ways(axis: str) -> int:
  """How many pieces the mesh splits a logical axis into."""
  mesh = current()
  return 1 if mesh is None else math.prod(mesh.shape.get(n, 1) for n in mesh_lib.names(axis))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Says how an array lies on the mesh, by the logical names of its axes; None keeps an axis whole."""
  mesh = current()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, mesh_lib.spec(mesh, x.shape, axes)))


def per_device(f: Callable[..., jax.Array], in_axes: Sequence[Axes], out_axes: Axes) -> Callable[..., jax.Array]:
  """Has each device call `f` on its own pieces.

  Args:
    f: from arrays to one array; within it, `gather` and `index` reach over a logical axis.
    in_axes: the logical axes of each argument; an axis that the mesh doesn't divide reaches `f` whole.
    out_axes: of the result, whose sizes must be those of the arguments' axes of the same names.
  """
  mesh = current()
  if mesh is None:
    return f

  def call(*arrays: jax.Array) -> jax.Array:
    sizes = {n: s for x, axes in zip(arrays, in_axes, strict=True) for n, s in zip(axes, x.shape, strict=True) if n}
    shape = tuple(sizes.get(n, 0) for n in out_axes)
    specs = tuple(mesh_lib.spec(mesh, x.shape, axes) for x, axes in zip(arrays, in_axes))
    out = mesh_lib.spec(mesh, shape, out_axes)
    return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

  return call


def _manual(axis: str) -> tuple[str, ...]:
  """The mesh axes that split a logical axis, within `per_device`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not any(t == AxisType.Manual for t in mesh.axis_types):
    return ()
  return tuple(n for n in mesh_lib.names(axis) if mesh.shape.get(n, 1) > 1)


def gather(x: jax.Array, axis: str, *, dimension: int) -> jax.Array:
  """Within `per_device`: the whole of a split axis, from all devices that share it."""
  names = _manual(axis)
  return jax.lax.all_gather(x, names, axis=dimension, tiled=True) if names else x


def index(axis: str) -> Any:
  """Within `per_device`: which piece of a split axis this device holds."""
  names = _manual(axis)
  return jax.lax.axis_index(names) if names else 0

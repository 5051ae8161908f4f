"""Computing on a mesh in terms of logical axes: what models call, so that they need know no mesh.

All of these read the mesh that `jax.set_mesh` sets around a trace, and do nothing where there is none, where it has one
device, or within `per_device` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
import re
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


def compute_capability() -> tuple[int, int] | None:
  """(9, 0) for an H100, say: of this process's own GPUs, which jax's kernels for them go by too; None without such."""
  if platform() != "gpu" or jax.default_backend() == "cpu":
    return None
  found = re.fullmatch(r"(\d+)\.(\d+)", getattr(jax.local_devices()[0], "compute_capability", ""))
  return (int(found[1]), int(found[2])) if found else None


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


def per_device(f: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Any) -> Callable[..., Any]:
  """Has each device call `f` on its own pieces.

  Args:
    f: from arrays to an array or several; within it, the functions below reach over a logical axis.
    in_axes: the logical axes of each argument; an axis that the mesh doesn't divide reaches `f` whole.
    out_axes: of the result, or a list of those of the results, whose sizes must be those of the arguments' axes of the
      same names.
  """
  mesh = current()
  if mesh is None:
    return f

  def call(*arrays: jax.Array) -> jax.Array:
    sizes = {n: s for x, axes in zip(arrays, in_axes, strict=True) for n, s in zip(axes, x.shape, strict=True) if n}
    specs = tuple(mesh_lib.spec(mesh, x.shape, axes) for x, axes in zip(arrays, in_axes))
    outs = [
        mesh_lib.spec(mesh, tuple(sizes.get(n, 0) for n in axes), axes)
        for axes in (out_axes if isinstance(out_axes, list) else [out_axes])
    ]
    out = tuple(outs) if isinstance(out_axes, list) else outs[0]
    return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

  return call


def _inside() -> jax.sharding.AbstractMesh | None:
  """The mesh, within `per_device`."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or not any(t == AxisType.Manual for t in mesh.axis_types) else mesh


def _manual(axis: str) -> tuple[str, ...]:
  """The mesh axes that split a logical axis, within `per_device`."""
  mesh = _inside()
  return () if mesh is None else tuple(n for n in mesh_lib.names(axis) if mesh.shape.get(n, 1) > 1)


def gather(x: jax.Array, axis: str, *, dimension: int) -> jax.Array:
  """Within `per_device`: the whole of a split axis, from all devices that share it."""
  names = _manual(axis)
  return jax.lax.all_gather(x, names, axis=dimension, tiled=True) if names else x


def gather_all(x: jax.Array, shape: Sequence[int], axes: Axes) -> jax.Array:
  """Within `per_device`: the whole of an array of these sizes and axes, of which x is this device's piece."""
  mesh = _inside()
  if mesh is None:
    return x
  for dimension, part in enumerate(mesh_lib.spec(mesh, tuple(shape), axes)):
    if part is not None:
      x = jax.lax.all_gather(x, part, axis=dimension, tiled=True)
  return x


def add_up(x: jax.Array, *axes: str) -> jax.Array:
  """Within `per_device`: the sum over all devices that split these logical axes."""
  names = tuple(n for axis in axes for n in _manual(axis))
  return jax.lax.psum(x, names) if names else x


def add_up_pieces(x: jax.Array, axes: Axes, *, over: Sequence[str]) -> jax.Array:
  """Within `per_device`: this device's piece of the sum over all devices that split the logical axes `over`.

  Args:
    x: whole.
    axes: along which the result is split; those of its mesh axes that are summed over, that is.
    over: of the sum.
  """
  mesh = _inside()
  if mesh is None:
    return x
  left = [n for axis in over for n in _manual(axis)]
  for dimension, part in enumerate(mesh_lib.spec(mesh, x.shape, axes)):
    names = () if part is None else (part,) if isinstance(part, str) else part
    if names and all(n in left for n in names):
      x = jax.lax.psum_scatter(x, names, scatter_dimension=dimension, tiled=True)
      left = [n for n in left if n not in names]
  return jax.lax.psum(x, tuple(left)) if left else x


def largest(x: jax.Array, axis: str) -> jax.Array:
  """Within `per_device`: the maximum over all devices that split a logical axis."""
  names = _manual(axis)
  return jax.lax.pmax(x, names) if names else x


def index(axis: str) -> Any:
  """Within `per_device`: which piece of a split axis this device holds."""
  names = _manual(axis)
  return jax.lax.axis_index(names) if names else 0

"""The device mesh, and the table that says which mesh axis splits which logical axis."""

from __future__ import annotations

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from orthus_jax.config import BadRequest, MeshConfig

AXES = ("data", "fsdp", "tensor", "context")

# The one place to read and to change. A logical axis that isn't listed is kept whole on every device.
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "positions": "context",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_in": "fsdp",
    "head_width": "tensor",
}


def make_mesh(config: MeshConfig, *, devices: list[jax.Device] | None = None) -> Mesh:
  """Builds the mesh that a config asks for.

  Raises:
    BadRequest: if the sizes don't multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {axis: getattr(config, axis) for axis in AXES}
  known = math.prod(s for s in sizes.values() if s != -1)
  rest = [a for a, s in sizes.items() if s == -1]
  if len(devices) % known or (not rest and known != len(devices)):
    asked = " x ".join(f"{a}={s}" for a, s in sizes.items())
    raise BadRequest(f"the mesh {asked} doesn't fit {len(devices)} devices: make the sizes multiply to {len(devices)}")
  for axis in rest:
    sizes[axis] = len(devices) // known
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def names(axis: str | None) -> tuple[str, ...]:
  """The mesh axes that split a logical axis."""
  rule = RULES.get(axis, ()) if axis else ()
  return (rule,) if isinstance(rule, str) else rule


def spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
  """How an array of named axes lies on a mesh; an axis that its mesh axes don't divide is kept whole."""
  parts, used = [], set()
  for size, axis in zip(shape, axes, strict=True):
    over = tuple(n for n in names(axis) if n not in used and mesh.shape.get(n, 1) > 1)
    if not over or size % math.prod(mesh.shape[n] for n in over):
      parts.append(None)
      continue
    used.update(over)
    parts.append(over[0] if len(over) == 1 else over)
  return PartitionSpec(*parts)


def sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
  """`spec` on its mesh."""
  return NamedSharding(mesh, spec(mesh, shape, axes))


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
  """Refuses a batch that the devices can't share evenly.

  Raises:
    BadRequest: naming sizes that would do.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % (ways * accumulation):
    raise BadRequest(
        f"run.batch_size={batch_size} can't be split over data x fsdp = {ways} devices and {accumulation}"
        f" microbatches: make it a multiple of {ways * accumulation}"
    )

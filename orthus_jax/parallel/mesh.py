"""The device mesh, and the table that says which mesh axis splits which logical axis."""

from __future__ import annotations

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from orthus_jax.config import Config, MeshConfig
from orthus_jax.errors import BadRequest

AXES = ("data", "fsdp", "tensor", "context")

# The one place to read and to change. A logical axis that isn't listed is kept whole on every device. `batch`,
# `positions` and `patches` are of activations, the others of parameters.
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "positions": "context",
    "patches": ("context", "tensor"),
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

  Where the devices are several TPU slices, `data` alone runs between them, over the slower network.

  Raises:
    BadRequest: if the sizes don't multiply to the number of devices, or `data` to that of slices.
  """
  devices = jax.devices() if devices is None else devices
  slices = max(len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}), 1)
  of_axis = sizes(config, devices=len(devices), slices=slices)
  types = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    return jax.make_mesh(tuple(of_axis.values()), AXES, axis_types=types, devices=devices)
  inner = (of_axis["data"] // slices, *list(of_axis.values())[1:])
  arranged = mesh_utils.create_hybrid_device_mesh(
      inner, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, AXES, axis_types=types)


def sizes(config: MeshConfig, *, devices: int, slices: int = 1) -> dict[str, int]:
  """Each axis's size on so many devices.

  Raises:
    BadRequest: if the sizes don't multiply to the number of devices, or `data` to that of slices.
  """
  found = {axis: getattr(config, axis) for axis in AXES}
  known = math.prod(s for s in found.values() if s != -1)
  rest = [a for a, s in found.items() if s == -1]
  if devices % known or (not rest and known != devices):
    asked = " x ".join(f"{a}={s}" for a, s in found.items())
    raise BadRequest(f"the mesh {asked} doesn't fit {devices} devices: make the sizes multiply to {devices}")
  for axis in rest:
    found[axis] = devices // known
  if found["data"] % slices:
    raise BadRequest(f"mesh.data={found['data']} must be a multiple of the {slices} slices: no other axis runs between them")
  return found


def names(axis: str | None) -> tuple[str, ...]:
  """The mesh axes that split a logical axis."""
  rule = RULES.get(axis, ()) if axis else ()
  return (rule,) if isinstance(rule, str) else rule


def spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
  """How an array of named axes lies on a mesh; an axis that its mesh axes don't divide is kept whole."""
  parts: list[str | tuple[str, ...] | None] = []
  used: set[str] = set()
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


def check(mesh: Mesh | AbstractMesh, config: Config) -> None:
  """Refuses a model or a batch that the mesh can't share evenly.

  What would be kept whole instead is the bulk of a model or of a step, so that devices would run out of memory or do the
  same work over. Only the diffusion head's small axes are kept whole where they aren't divided.

  Raises:
    BadRequest: naming what to change.
  """
  check_batch(mesh, config.run.batch_size, config.optimizer.accumulation)
  if config.task != "orthus":
    return
  t = config.model.transformer
  sizes = (
      ("model.transformer.heads", t.heads, "heads"),
      ("model.transformer.kv_heads", t.kv_heads, "kv_heads"),
      ("model.transformer.mlp_width", t.mlp_width, "mlp"),
      ("model.transformer.vocab_size", t.vocab_size, "vocab"),
      ("model.transformer.width", t.width, "embed"),
      ("data.sequence_length", config.data.sequence_length, "positions"),
  )
  for field, size, axis in sizes:
    ways = math.prod(mesh.shape.get(n, 1) for n in names(axis))
    if size % ways:
      over = ", ".join(f"mesh.{n}" for n in names(axis))
      raise BadRequest(f"{field}={size} can't be split in {ways}: make it a multiple, or {over} a divisor of {size}")


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulation: int = 1) -> None:
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

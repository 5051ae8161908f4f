"""One item of a checkpoint, a tree of arrays, as Orbax stores it: flat by name, its small arrays packed as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding
import numpy as np
import orbax.checkpoint as ocp

from orthus_jax.interop.huggingface import Place
from orthus_jax.training.checkpoints import small_arrays, zarr_arrays


class Mismatch(ValueError):
  """An item that holds other arrays than are asked for."""


def handler(*, own_disks: bool = False) -> ocp.PyTreeCheckpointHandler:
  """Writes what `save_args` describes.

  Args:
    own_disks: each process has a disk of its own, where it writes files of its own: what all have written is the item.
  """
  # Floats hardly compress: zstd would take as much time again as all the rest of a save, for a tenth of the bytes.
  if own_disks:
    return ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False, multiprocessing_options=alone())
  return ocp.PyTreeCheckpointHandler(use_compression=False)


def alone() -> ocp.options.MultiprocessingOptions:
  """Has each process see to its own directory."""
  return ocp.options.MultiprocessingOptions(primary_host=None)


def save_args(tree: Any) -> ocp.args.PyTreeSave:
  """What Orbax needs to know to save a tree."""
  named = flatten(tree)
  plan = small_arrays.plan(named)
  packed = small_arrays.pack(named, plan)
  pieces = {n: _in_pieces(n, v) for n, v in packed.items()}
  return ocp.args.PyTreeSave(packed, save_args=pieces, custom_metadata={small_arrays.KEY: plan})


def _in_pieces(name: str, value: jax.Array) -> ocp.SaveArgs:
  """Has a large array saved in chunks of a layer or less, so that a conversion can read one at a time."""
  if value.nbytes <= zarr_arrays.PIECE:
    return ocp.SaveArgs()
  return ocp.SaveArgs(chunk_byte_size=zarr_arrays.PIECE, shard_axes=(0,) if "/layers/" in name else ())


def flatten(tree: Any) -> dict[str, Any]:
  """A tree's leaves by their paths, joined with "/"; a flat dict stays as it is."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def read(
    reader: ocp.StandardCheckpointer, folder: Path, place: Place | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, np.ndarray | jax.Array]:  # fmt: skip
  """Reads an item, or those of its arrays that are wanted.

  Args:
    reader: Orbax'.
    folder: the item's.
    place: (name, shape, dtype) → the sharding that an array is read onto, of a large one each device's part alone; None
      for a numpy array, as all are without this argument.
    wanted: by name; of small arrays, more are read than are given.
  """
  tree = reader.metadata(folder).item_metadata
  plan: small_arrays.Packing = (tree.custom_metadata or {}).get(small_arrays.KEY, {})
  # Read as numpy unless told where to, so that a checkpoint made on other devices loads anywhere.
  target = {}
  for n, m in tree.tree.items():
    if n not in plan and not wanted(n):
      continue
    sharding = place(n, m.shape, np.dtype(m.dtype)) if place and n not in plan else None
    target[n] = np.zeros(m.shape, m.dtype) if sharding is None else jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding)
  if len(target) < len(tree.tree):
    some = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with ocp.Checkpointer(handler()) as partial:
      stored = partial.restore(folder, some)
  else:
    stored = reader.restore(folder, target)
  found = {n: v if isinstance(v, jax.Array) else np.asarray(v) for n, v in stored.items() if n not in plan}
  for name, parts in plan.items():
    for n, v in small_arrays.unpack(np.asarray(stored[name]), parts).items():
      if not wanted(n):
        continue
      sharding = place(n, v.shape, v.dtype) if place else None
      found[n] = v if sharding is None else jax.make_array_from_callback(v.shape, sharding, v.__getitem__)
  return found


def read_like(reader: ocp.StandardCheckpointer, folder: Path, target: Any) -> Any:
  """Reads an item onto a mesh, as a tree of the target's structure.

  Args:
    reader: Orbax'.
    folder: the item's.
    target: of `jax.ShapeDtypeStruct` with shardings.

  Raises:
    Mismatch: if it holds other arrays than the target has.
  """
  wanted = flatten(target)

  def place(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Sharding:
    if name not in wanted:
      raise Mismatch(f"{folder.name} has an array {name!r} that is unknown here")
    w = wanted[name]
    if (tuple(shape), dtype) != (w.shape, w.dtype):
      raise Mismatch(f"{folder.name}: {name} is {dtype}{list(shape)} there and {w.dtype}{list(w.shape)} here")
    return w.sharding

  found = read(reader, folder, place)
  if missing := sorted(set(wanted) - set(found)):
    raise Mismatch(f"{folder.name} lacks the array {missing[0]!r}")
  return jax.tree.unflatten(jax.tree.structure(target), [found[n] for n in wanted])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Orbax warns of a metadata file that one item of a checkpoint doesn't have of its own."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)

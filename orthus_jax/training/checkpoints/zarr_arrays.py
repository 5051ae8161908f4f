"""A checkpoint's arrays on disk, written and read a piece at a time.

Training saves its arrays through Orbax, which takes a whole tree at once. A conversion can't hold one, so it writes the
arrays itself, in a layout that Orbax restores like its own (a test does): one uncompressed zarr 3 array per parameter,
in chunks of one layer or less, beside metadata as Orbax writes it.

Each chunk keeps its axes in the published order (zarr's `transpose` codec), so that its bytes are those of the published
array: a conversion copies byte ranges from file to file, which the kernel does without showing them to us, and transposes
nothing. Whoever reads the array sees our axes; that costs a reader, once, what each conversion would have paid twice.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from orthus_jax.files import copy_range
from orthus_jax.training.checkpoints import small_arrays

_METADATA = "_METADATA"
PIECE = 1 << 26  # bytes of a chunk at most, unless one row has more
_LARGE = 1 << 20  # bytes


class Spec(NamedTuple):
  """An array to be written.

  Attributes:
    shape, dtype: ours.
    order: of its axes in each chunk, outermost first, without the one of stacked layers.
    stacked: whether its first axis is the layers'.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  order: tuple[int, ...]
  stacked: bool

  @property
  def layer_shape(self) -> tuple[int, ...]:
    return self.shape[1:] if self.stacked else self.shape

  @property
  def rows(self) -> int:
    """How many indices of the outermost axis of `order` make a piece: a divisor of that axis."""
    size = self.layer_shape[self.order[0]]
    return piece_rows(size, math.prod(self.layer_shape) // max(size, 1) * self.dtype.itemsize)

  @property
  def full_order(self) -> tuple[int, ...]:
    """`order`, with the axis of stacked layers in front."""
    return (0, *(a + 1 for a in self.order)) if self.stacked else self.order

  @property
  def chunk(self) -> tuple[int, ...]:
    one = list(self.layer_shape)
    one[self.order[0]] = self.rows
    return (1, *one) if self.stacked else tuple(one)

  def place(self, layer: int, begin: int) -> tuple[int, ...]:
    """In the grid of chunks: of the chunk that begins at index `begin` of the split axis."""
    one = [0] * len(self.layer_shape)
    one[self.order[0]] = begin // self.rows
    return (layer, *one) if self.stacked else tuple(one)


def piece_rows(size: int, row_bytes: int) -> int:
  """The largest divisor of `size` whose rows take no more than a piece's bytes; at least 1."""
  return max((d for d in range(1, size + 1) if size % d == 0 and d * row_bytes <= PIECE), default=1)


class Writer:
  """Makes a folder of arrays. Its writes return futures; whoever waits for them learns of a full disk.

  Args:
    folder: made here.
    specs: all arrays, by name.
  """

  def __init__(self, folder: Path, specs: Mapping[str, Spec]):
    self._folder, self._specs = folder, specs
    folder.mkdir()
    (folder / _METADATA).write_text(json.dumps(_metadata(specs)), encoding="utf-8")
    opening = {}
    for name, spec in specs.items():
      metadata = {
          "shape": spec.shape,
          "data_type": spec.dtype.name,
          "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": spec.chunk}},
          "chunk_key_encoding": _KEYS,
          "codecs": _codecs(spec.full_order),
          "fill_value": 0,
      }
      opening[name] = ts.open(
          {
              "driver": "zarr3",
              "kvstore": {"driver": "file", "path": str((folder / name).absolute())},
              "metadata": metadata,
              # Zeros are data too: a reader of the files alone should find every chunk.
              "store_data_equal_to_fill_value": True,
              # Everything is synced at once, before the checkpoint takes its name.
              "context": {"file_io_sync": False},
          },
          create=True,
      )
    self._arrays = {name: array.result() for name, array in opening.items()}

  def write(self, name: str, index: tuple[int | slice, ...], value: np.ndarray) -> ts.Future:
    """Starts writing a piece of whole chunks; `value` must not change until the future is done."""
    return self._arrays[name][index].write(value, can_reference_source_data_indefinitely=True)

  def copy(self, name: str, layer: int, begin: int, source: Path, at: int) -> int:
    """Makes a chunk of the bytes that a file has from `at` on, and returns how many.

    Args:
      name: of the parameter, whose dtype the bytes are of.
      layer: which of its stacked layers; not read where it has none.
      begin: the chunk's first index along the outermost axis of its spec's order.
    """
    spec = self._specs[name]
    file = self._folder / name / _chunk_file(spec.place(layer, begin))
    size = math.prod(spec.chunk) * spec.dtype.itemsize
    with open(file, "wb", buffering=0) as f:
      copy_range(source, at, f.fileno(), 0, size)
    return size


_KEYS = {"name": "default", "configuration": {"separator": "."}}  # all chunks in one folder


def _chunk_file(place: tuple[int, ...]) -> str:
  return ".".join(("c", *map(str, place)))


def _codecs(order: tuple[int, ...]) -> list[dict[str, Any]]:
  return [
      {"name": "transpose", "configuration": {"order": list(order)}},
      {"name": "bytes", "configuration": {"endian": "little"}},
  ]


class Chunk(NamedTuple):
  """A file with a piece of a published array.

  Attributes:
    layer: which of the stacked layers; 0 where there are none.
    begin: the first index along the published array's outermost axis, in terms of our axes.
    size: bytes.
    file: holds them and nothing else.
  """

  layer: int
  begin: int
  size: int
  file: Path


def raw_chunks(folder: Path, name: str, spec: Spec) -> list[Chunk] | None:
  """The files of an array that lies as `Writer` would write it by `spec`; None where it lies otherwise."""
  try:
    metadata = json.loads((folder / name / "zarr.json").read_text(encoding="utf-8"))
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    encoding = metadata["chunk_key_encoding"]
  except (OSError, ValueError, KeyError, TypeError):
    return None
  if metadata["codecs"] != _codecs(spec.full_order) or encoding != _KEYS or tuple(grid) != spec.chunk:
    return None
  size = math.prod(spec.chunk) * spec.dtype.itemsize
  chunks = []
  for layer in range(spec.shape[0] if spec.stacked else 1):
    for begin in range(0, spec.layer_shape[spec.order[0]], spec.rows):
      chunks.append(Chunk(layer, begin, size, folder / name / _chunk_file(spec.place(layer, begin))))
  return chunks


def _metadata(specs: Mapping[str, Spec]) -> dict[str, Any]:
  """What Orbax writes beside a flat tree of arrays; it reads every version that it ever wrote."""
  tree = {
      f"({name!r},)": {
          "key_metadata": [{"key": name, "key_type": 2}],  # 2: a key of a dict
          "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
      }
      for name in specs
  }
  return {
      "tree_metadata": tree, "use_ocdbt": False, "use_zarr3": True, "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
  }  # fmt: skip


def open_arrays(folder: Path) -> dict[str, ts.TensorStore]:
  """The arrays of a folder that Orbax or `Writer` wrote; large ones not yet read.

  Raises:
    ValueError: if its metadata is missing or damaged, or an array of it is.
  """
  try:
    metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    names = [entry["key_metadata"][0]["key"] for entry in metadata["tree_metadata"].values()]
    packed: small_arrays.Packing = (metadata["custom_metadata"] or {}).get(small_arrays.KEY, {})
  except (OSError, KeyError, IndexError, TypeError) as e:
    raise ValueError(f"{folder} has no readable _METADATA") from e
  path = str(folder.absolute())
  handles = {}
  for name in names:
    if metadata.get("use_ocdbt", True):
      kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": f"{name}/"}
    else:
      kvstore = {"driver": "file", "path": f"{path}/{name}/"}
    spec = {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": kvstore}
    handles[name] = ts.open(spec, open=True, read=True)
  opened = {name: handle.result() for name, handle in handles.items()}
  for name, parts in packed.items():
    opened |= {n: ts.array(part) for n, part in small_arrays.unpack(opened.pop(name).read().result(), parts).items()}
  return opened


def read_chunk(array: ts.TensorStore) -> tuple[int, ...]:
  """The shape of what is read at once; all of an array in memory."""
  return tuple(c or n for c, n in zip(array.chunk_layout.read_chunk.shape, array.shape))

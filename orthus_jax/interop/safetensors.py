"""Reading and writing safetensors files a piece at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape, place), then the
arrays' bytes. The library of that name reads whole arrays and writes whole files from memory; here, no more is held than
the piece in hand, and bfloat16 is an ordinary dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from orthus_jax.files import copy_range, start_writing

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; what the library allows


class Damaged(Exception):
  """A file that can't be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array of a file, not yet read.

  Attributes:
    file: which holds it.
    dtype: as the file calls it; `numpy_dtype` is None for what isn't a float.
    shape: the published one.
    begin: of its bytes in the file.
  """

  file: Path
  dtype: str
  shape: tuple[int, ...]
  begin: int

  @property
  def numpy_dtype(self) -> Any:
    """None where numpy has no such dtype."""
    return _DTYPES.get(self.dtype)

  @property
  def row_bytes(self) -> int:
    """Of one index of the first axis."""
    return math.prod(self.shape[1:]) * self.numpy_dtype.itemsize

  def read(self, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Rows begin..end along the first axis (all of an array without axes), in memory of their own.

    Raises:
      EOFError: if the file ends before them.
    """
    rows = (len(range(*slice(begin, end).indices(self.shape[0]))), *self.shape[1:]) if self.shape else ()
    value = np.empty(rows, self.numpy_dtype)
    skip = begin * self.row_bytes
    with open(self.file, "rb", buffering=0) as f:
      f.seek(self.begin + skip)
      view = memoryview(value.reshape(-1).view(np.uint8))
      while view:
        n = f.readinto(view)
        if not n:
          raise EOFError(f"{self.file.name} ends within an array")
        view = view[n:]
    return value

  def view(self) -> np.ndarray:
    """The array, mapped: only what is looked at is read."""
    if not math.prod(self.shape):
      return np.empty(self.shape, self.numpy_dtype)
    return np.memmap(self.file, self.numpy_dtype, "r", self.begin, self.shape)


def read_header(file: Path) -> dict[str, Entry]:
  """The arrays of a file.

  Raises:
    Damaged: if it is none, or shorter than its header says.
  """
  try:
    size = file.stat().st_size
    with open(file, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise Damaged(f"{file.name} is no safetensors file, or its header is cut off")
      header = json.loads(f.read(length))
  except OSError as e:
    raise Damaged(f"{file.name} can't be read ({e.strerror})") from e
  except ValueError as e:
    raise Damaged(f"{file.name} has a damaged header") from e
  entries, last = {}, 0
  try:
    for name, said in header.items():
      if name == "__metadata__":
        continue
      begin, end = said["data_offsets"]
      entry = Entry(file, said["dtype"], tuple(map(int, said["shape"])), 8 + length + begin)
      if entry.numpy_dtype is not None and end - begin != math.prod(entry.shape) * entry.numpy_dtype.itemsize:
        raise Damaged(f"{file.name} gives {name} {end - begin} bytes, which its shape {list(entry.shape)} contradicts")
      entries[name] = entry
      last = max(last, 8 + length + end)
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise Damaged(f"{file.name} has a damaged header") from e
  if last > size:
    raise Damaged(f"{file.name} is cut off: it holds {size:,} of {last:,} bytes")
  return entries


class Writer:
  """Writes one file whose arrays come in any order, each in pieces.

  Args:
    file: to be written; a context manager closes it, once its bytes are on the disk.
    arrays: (name, dtype, shape) of every array, in the order of the file.
  """

  def __init__(self, file: Path, arrays: Iterable[tuple[str, np.dtype, tuple[int, ...]]]):
    header: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    at, self._begin = 0, {}
    for name, dtype, shape in arrays:
      size = math.prod(shape) * np.dtype(dtype).itemsize
      header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [at, at + size]}
      self._begin[name] = at
      at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    self._data = 8 + len(text)
    self.size = self._data + at
    self._file = open(file, "wb", buffering=0)
    self._put(len(text).to_bytes(8, "little") + text, 0)
    os.ftruncate(self._file.fileno(), self.size)

  def write(self, name: str, value: np.ndarray, *, offset: int = 0) -> None:
    """Puts a piece of an array where it belongs, `offset` bytes after the array's first."""
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    at = self._data + self._begin[name] + offset
    self._put(data, at)
    start_writing(self._file.fileno(), at, data.nbytes)

  def copy(self, name: str, source: Path, size: int, *, offset: int = 0) -> None:
    """Puts the first `size` bytes of a file where a piece of an array belongs."""
    copy_range(source, 0, self._file.fileno(), self._data + self._begin[name] + offset, size)

  def _put(self, data: bytes | np.ndarray, at: int) -> None:
    view = memoryview(data)
    while view:
      n = os.pwrite(self._file.fileno(), view, at)
      view, at = view[n:], at + n

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, kind, *_) -> None:
    try:
      if kind is None:
        os.fsync(self._file.fileno())
    finally:
      self._file.close()

"""Reading and writing safetensors files a piece at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape, place), then the
arrays' bytes. The library of that name reads whole arrays and writes whole files from memory; here, no more is held than
the piece in hand, and bfloat16 is an ordinary dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from orthus_jax.errors import one_line
from orthus_jax.files import copy_range, start_writing

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Bits of a value, of every dtype that a file may hold.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; what the library allows
_LARGEST = (1 << 64) - 1  # number of a header, and product of a shape


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
  """The arrays of a file, in the order of its header.

  What the library of that name refuses is refused: arrays that overlap, leave holes or bytes behind the last, or have
  other bytes than their shape says; dtypes without a name; what isn't JSON as it is defined. Beyond that, nothing may
  be there twice, of which the library keeps the last, and an array is described by fields alone, for which the library
  also takes a list.

  Raises:
    Damaged: if it is none, or not as long as its header says.
  """
  try:
    size = file.stat().st_size
    with open(file, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise Damaged(f"{file.name} is no safetensors file, or its header is cut off or too long")
      text = f.read(length)
  except OSError as e:
    raise Damaged(f"{file.name} can't be read ({e.strerror})") from e
  entries, places = {}, []
  try:
    for name, said in _parse(text).items():
      dtype, shape, begin, end = _array(name, said)
      entries[name] = Entry(file, dtype, shape, 8 + length + begin)
      places.append((begin, end, name))
    last = 0
    for begin, end, name in sorted(places):
      if begin != last:
        raise ValueError(f"{name} begins at byte {begin:,} of the arrays, where {last:,} is next")
      last = end
  except (ValueError, RecursionError) as e:
    raise Damaged(f"{file.name} has a damaged header: {one_line(str(e))}") from e
  last += 8 + length
  if last > size:
    raise Damaged(f"{file.name} is cut off: it holds {size:,} of {last:,} bytes")
  if last < size:
    raise Damaged(f"{file.name} has a damaged header: {size - last:,} bytes follow the last array that it names")
  return entries


def _parse(text: bytes) -> dict[str, Any]:
  """A header's arrays, each as it is described; a ValueError says what is wrong."""
  header = json.loads(
      text.decode("utf-8"), object_pairs_hook=_fields, parse_int=_whole, parse_float=_finite, parse_constant=_finite
  )
  if not isinstance(header, dict):
    raise ValueError("it must hold fields")
  if b"\\u" in text:
    json.dumps(header, ensure_ascii=False).encode("utf-8")  # fails on half of a surrogate pair, which is no text
  metadata = header.pop("__metadata__", None)
  if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
    raise ValueError("__metadata__ must hold texts by name")
  return header


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]} is there twice")
  return fields


def _whole(text: str) -> int | float:
  """A number without a fraction; a float, which no place or shape is, if it is signed or far too large."""
  return _finite(text) if text.startswith("-") or len(text) > len(str(_LARGEST)) else int(text)


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text[:20]} is no number")
  return value


def _array(name: str, said: Any) -> tuple[str, tuple[int, ...], int, int]:
  """Dtype, shape, begin and end of one array; a ValueError says what is wrong."""
  if not isinstance(said, dict):
    raise ValueError(f"{name} must hold fields")
  dtype, shape, offsets = said.get("dtype"), said.get("shape"), said.get("data_offsets")
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise ValueError(f"{name} is of dtype {dtype!r}, which doesn't exist")
  if not (_wholes(shape) and _wholes(offsets) and len(offsets) == 2):
    raise ValueError(f"{name} has shape={shape!r} and data_offsets={offsets!r}: whole numbers, not negative, are expected")
  count = 1
  for n in shape:
    count *= n
    if count > _LARGEST:
      raise ValueError(f"{name} has shape={shape!r}, which is too large")
  bits, size = count * _BITS[dtype], offsets[1] - offsets[0]
  if bits != 8 * size:
    raise ValueError(f"it gives {name} {size} bytes, which {dtype} of shape {shape} contradicts")
  return dtype, tuple(shape), offsets[0], offsets[1]


def _wholes(values: Any) -> TypeGuard[list[int]]:
  return isinstance(values, list) and all(type(v) is int and v <= _LARGEST for v in values)


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

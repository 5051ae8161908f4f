"""One process's local checkpoints on its machine's disk: a few files that are written over and over.

    FOLDER/0.bin 0.json  1.bin 1.json …     the state, and what it is
    FOLDER/frozen-CRC.bin                    parameters that aren't trained, which all of them share

A .json appears whole, once its .bin is, and goes before its .bin is written over; what has none isn't a checkpoint. Nothing is
synced: what a process wrote outlives it, and what a machine that went down has lost, the checksums tell. Files are written over
in place, as new ones cost three times as much: the system has to clear each page first. A checksum is the CRC-32 of sums, since
one of all bytes would be half of what a save costs.
"""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import json
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from orthus_jax import files
from orthus_jax.training.checkpoints.host_shards import Piece

_BLOCK = 1 << 20  # bytes that are summed and written while they are in the cache
_FROZEN = "frozen-"


class Slots:
  """Places for so many checkpoints.

  Args:
    folder: this process's own; made at the first write, for nobody else's eyes, as others may use the disk too.
    count: how many there are.
  """

  def __init__(self, folder: Path, count: int):
    self.folder, self.count = folder, count

  def found(self) -> dict[int, dict[str, Any]]:
    """What is known of the checkpoints there are, by slot."""
    known = {i: files.read_json(self.folder / f"{i}.json") for i in range(self.count)}
    return {i: about for i, about in known.items() if isinstance(about.get("step"), int)}

  def write(self, slot: int, about: dict[str, Any], arrays: list[np.ndarray], frozen: dict[str, list[int]]) -> None:
    """Writes a checkpoint over what is in a slot.

    Args:
      slot: from 0.
      about: what is to be known of it; its "step" at least.
      arrays: of the state, but for frozen ones.
      frozen: from `write_frozen`.

    Raises:
      OSError: as on a full disk; the slot is empty then.
    """
    data, said = self.folder / f"{slot}.bin", self.folder / f"{slot}.json"
    self._make()
    said.unlink(missing_ok=True)
    try:
      listed = {data.name: list(_write(data, arrays)), **frozen}
      half = said.with_suffix(".new")
      half.write_text(json.dumps(about | {"files": listed}), encoding="utf-8")
      half.replace(said)
    except OSError:
      with contextlib.suppress(OSError):
        data.unlink()
      raise

  def write_frozen(self, arrays: list[np.ndarray]) -> dict[str, list[int]]:
    """Writes what no step changes, for all checkpoints to come; returns what `write` is to be told."""
    if not arrays:
      return {}
    self._make()
    half = self.folder / f"{_FROZEN}new"
    size, crc = _write(half, arrays)
    whole = self.folder / f"{_FROZEN}{crc:08x}.bin"
    half.replace(whole)
    for other in self.folder.glob(f"{_FROZEN}*"):
      if other != whole:
        other.unlink()
    return {whole.name: [size, crc]}

  def read(self, slot: int, state: list[Piece], frozen: list[Piece]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A checkpoint's arrays, as `write` and `write_frozen` got them.

    Raises:
      ValueError: if something isn't as it was written, saying what.
    """
    about = files.read_json(self.folder / f"{slot}.json")
    values: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for name, (size, crc) in about.get("files", {}).items():
      rest = name.startswith(_FROZEN)
      values[rest] = _read(self.folder / name, frozen if rest else state, size, crc)
    if (len(values[False]), len(values[True])) != (len(state), len(frozen)):
      raise ValueError("it lacks a file")
    return values[False], values[True]

  def _make(self) -> None:
    self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    self.folder.mkdir(exist_ok=True, mode=0o700)


def _write(file: Path, arrays: Iterable[np.ndarray]) -> tuple[int, int]:
  """Writes arrays one after the other over a file; (bytes, checksum)."""
  size = crc = 0
  with file.open("r+b" if file.exists() else "wb", buffering=_BLOCK) as f:
    for array in arrays:
      data = array.reshape(-1).view(np.uint8)
      for begin in range(0, len(data), _BLOCK):
        block = data[begin : begin + _BLOCK]
        crc = _checksum(block, crc)
        f.write(block)
      size += len(data)
    f.truncate(size)
  return size, crc


def _checksum(block: np.ndarray, crc: int) -> int:
  """Of at most a block of bytes, uint8 [n]: CRC-32 of the sum of its 64-bit words, and of the bytes that are left."""
  whole = len(block) // 8 * 8
  total = np.add.reduce(block[:whole].view(np.uint64))
  return zlib.crc32(block[whole:], zlib.crc32(total.tobytes(), crc))


def _read(file: Path, held: list[Piece], size: int, crc: int) -> list[np.ndarray]:
  values, done, found = [], 0, 0
  try:
    with file.open("rb") as f:
      for piece in held:
        value = np.empty(piece.shape, piece.dtype)
        data = value.reshape(-1).view(np.uint8)
        done += f.readinto(data)
        for begin in range(0, len(data), _BLOCK):
          found = _checksum(data[begin : begin + _BLOCK], found)
        values.append(value)
      done += len(f.read())
  except OSError as e:
    raise ValueError(f"{file.name} can't be read ({e.strerror})") from e
  if done != size:
    raise ValueError(f"{file.name} has {done:,} bytes, not {size:,}")
  if found != crc:
    raise ValueError(f"{file.name} holds other bytes than were written")
  return values

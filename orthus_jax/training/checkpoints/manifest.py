"""What a checkpoint's directory should hold, written into it just before it gets its final name.

A size tells a truncated or missing file at once; a CRC-32 tells one whose bytes have changed.
"""

from __future__ import annotations

from concurrent import futures
import json
import os
from pathlib import Path
from typing import Any
import zlib

from orthus_jax.errors import BadRequest

NAME = "manifest.json"
_STAMPED = "_CHECKPOINT_METADATA"  # Orbax writes the time of the end into it, after all else
_FORMAT = 1  # of checkpoints; one that says nothing is of the first
_BLOCK = 1 << 18  # stays in the cache
_THREADS = 8  # zlib leaves Python's lock while it works


def write(folder: Path, facts: dict[str, Any] | None = None) -> None:
  """Lists every file that lies in a folder, with its size and checksum, in `manifest.json`.

  Args:
    folder: one checkpoint's directory.
    facts: what else is to be known of it, such as the data that it saw.
  """
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (NAME, _STAMPED))
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = list(pool.map(_checksum, files))
  listed = {p.relative_to(folder).as_posix(): [p.stat().st_size, s] for p, s in zip(files, sums)}
  half = folder / f".{NAME}"
  with half.open("w", encoding="utf-8") as f:
    json.dump({"format": _FORMAT, **(facts or {}), "crc32": listed}, f)
    f.flush()
    os.fsync(f.fileno())
  half.replace(folder / NAME)


def damage(folder: Path, *, read: bool = True, part: tuple[int, int] = (0, 1), missing: bool = True) -> str | None:
  """What is wrong with a checkpoint's directory; None for nothing.

  Args:
    folder: one checkpoint's directory.
    read: compare checksums too, not sizes alone.
    part: (i, n): read every n-th file from the i-th on, so that n processes share the work.
    missing: whether a file that isn't there counts; not where this disk is to have some of them alone.

  Raises:
    BadRequest: if a later version of the package wrote it; it is no worse for that.
  """
  if isinstance(written := facts(folder).get("format"), int) and written > _FORMAT:
    raise BadRequest(f"{folder} was written by a later version of orthus_jax (format {written}): update it to read this")
  try:
    if (folder / _STAMPED).exists():
      json.loads((folder / _STAMPED).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return f"{_STAMPED} can't be read"
  try:
    listed = json.loads((folder / NAME).read_text(encoding="utf-8"))["crc32"]
    wanted = {name: (int(size), int(crc)) for name, (size, crc) in listed.items()}
  except FileNotFoundError:
    # `orthus convert` and earlier versions write none; whoever restores the arrays learns whether they are whole.
    return None if any(folder.iterdir()) else "it is empty"
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return f"{NAME} can't be read"
  for name, (size, _) in wanted.items():
    try:
      there = (folder / name).stat().st_size
    except OSError:
      if missing:
        return f"{name} is missing"
      continue
    if there != size:
      return f"{name} has {there:,} bytes, not {size:,}"
  if read:
    names = [n for n in sorted(wanted)[part[0] :: part[1]] if missing or (folder / n).is_file()]
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      for name, crc in zip(names, pool.map(lambda n: _try_checksum(folder / n), names)):
        if crc is None:
          return f"{name} can't be read"
        if crc != wanted[name][1]:
          return f"{name} holds other bytes than were written"
  return None


def facts(folder: Path) -> dict[str, Any]:
  """What a checkpoint's manifest says beside checksums; nothing where it can't be read."""
  try:
    found = json.loads((folder / NAME).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return {k: v for k, v in found.items() if k != "crc32"} if isinstance(found, dict) else {}


def names(folder: Path) -> list[str]:
  """Of the files that a checkpoint's manifest lists; none where it can't be read."""
  try:
    return list(json.loads((folder / NAME).read_text(encoding="utf-8"))["crc32"])
  except (OSError, ValueError, KeyError, TypeError):
    return []


def has_checksums(folder: Path) -> bool:
  """Whether damage to what a directory holds can be told."""
  return (folder / NAME).is_file()


def _try_checksum(file: Path) -> int | None:
  try:
    return _checksum(file)
  except OSError:
    return None


def _checksum(file: Path) -> int:
  crc = 0
  with file.open("rb") as f:
    while block := f.read(_BLOCK):
      crc = zlib.crc32(block, crc)
  return crc

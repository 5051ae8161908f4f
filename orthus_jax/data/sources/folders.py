"""Folders, and those in them."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path


def walk(path: Path, broken: list[tuple[str, str, str]]) -> Iterator[tuple[str, list[str], list[str]]]:
  """As `os.walk`, links followed, though in no circle, and hidden folders left out; each folder's in order of their names.

  Args:
    path: where it begins.
    broken: gets folders that can't be read.
  """
  been = set()

  def fail(e: OSError) -> None:
    broken.append((str(e.filename), "all of it", f"the folder can't be read: {e.strerror}"))

  for folder, folders, names in os.walk(path, followlinks=True, onerror=fail):
    if (here := os.path.realpath(folder)) in been:
      folders.clear()
      continue
    been.add(here)
    yield folder, folders, names
    folders[:] = sorted(f for f in folders if not f.startswith("."))

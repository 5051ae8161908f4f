"""Folders of pictures whose names are the pictures' texts."""

from __future__ import annotations

import array
import itertools
import os
from pathlib import Path

import numpy as np

from orthus_jax.data.sources.folders import walk
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.data.sources.strings import Strings
from orthus_jax.data.sources.tar_samples import PICTURES

_LOOKED_AT = 100  # files of a folder
_FOLDERS = 1000
_CLUTTER = ("thumbs.db", "desktop.ini")  # of file managers


def is_picture(name: str) -> bool:
  """Whether a file is a picture, by its name."""
  return name.rpartition(".")[2].lower() in PICTURES and not name.startswith(".")


class Classes:
  """Pictures in folders, in order of their names.

  Args:
    root: what holds the folders.
    remarks: gets pictures that lie in none.
    broken: gets folders that can't be read.
  """

  def __init__(self, root: Path, remarks: Remarks, broken: list[tuple[str, str, str]]):
    self._folders: list[str] = []
    numbers = array.array("i")

    def names():
      for folder, _, files in walk(root, broken):
        shown = sorted(filter(is_picture, files))
        if Path(folder) == root:
          for name in shown:
            remarks.add("pictures passed over that lie in no class's folder", name)
        elif shown:
          numbers.extend([len(self._folders)] * len(shown))
          self._folders.append(folder)
          yield from shown

    self._names = Strings(names())
    self._numbers = np.array(numbers, np.int32)

  def __len__(self) -> int:
    return len(self._names)

  def place(self, row: int) -> tuple[str, str]:
    """(folder, name)."""
    return self._folders[self._numbers[row]], self._names[row]

  @property
  def folders(self) -> list[Path]:
    """The classes."""
    return [Path(f) for f in self._folders]


def few_classes(root: Path) -> list[str]:
  """Names of folders that look like classes: two at least, and all of them hold pictures and nothing else. Reads little."""
  with os.scandir(root) as entries:
    here = [e for e in itertools.islice(entries, _FOLDERS) if not e.name.startswith(".")]
  others = (*_CLUTTER, "readme", "license")
  if any(e.is_file() and not (is_picture(e.name) or e.name.lower().startswith(others)) for e in here):
    return []  # rows of some other layout
  folders = [e for e in here if e.is_dir()]
  return sorted(e.name for e in folders) if len(folders) > 1 and all(_only_pictures(e.path) for e in folders) else []


def _only_pictures(folder: str) -> bool:
  with os.scandir(folder) as entries:
    here = [e for e in itertools.islice(entries, _LOOKED_AT) if not e.name.lower().startswith((".", *_CLUTTER))]
  pictures = sum(is_picture(e.name) for e in here)
  return pictures > 0 and pictures + sum(e.is_dir() for e in here) == len(here)

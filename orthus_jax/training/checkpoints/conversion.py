"""What both ways between Hugging Face directories and native ones share (`import_huggingface.py`, `export_huggingface.py`).

What is held at once is a few pieces of at most 64 MiB, whatever the model's size (`zarr_arrays.py` says how the
native arrays are stored). A target appears under its name only when all of it is on the disk: it is written beside that name,
synced and renamed.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from pathlib import Path
import shutil

import numpy as np

from orthus_jax.errors import BadRequest

ORIGINALS = "huggingface"  # where a native directory keeps the files that it came with
AHEAD = 2  # pieces on their way while another is worked on

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
  """What was written: arrays, their bytes, and what the reader should know, a line each."""

  arrays: int
  bytes: int
  notes: tuple[str, ...]


def stored_dtype(stored: np.dtype, asked: str) -> np.dtype:
  """What an array is written in."""
  return np.dtype(stored if asked == "keep" else asked)


def check_source(source: Path) -> None:
  """Refuses a source that isn't there."""
  if not source.is_dir():
    raise BadRequest(f"--from={source} is no directory")


def check_target(source: Path, target: Path) -> None:
  """Refuses a source or a target that can't be converted."""
  check_source(source)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise BadRequest(f"--to={target} exists already: choose another place, or remove it")
  if target.absolute().resolve().is_relative_to(source.absolute().resolve()):
    raise BadRequest(f"--to={target} lies within --from={source}: choose another place")


def check_space(target: Path, size: int) -> None:
  """Refuses a target whose disk is too full."""
  place = target.absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  if free < size:
    raise BadRequest(f"--to={target} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")

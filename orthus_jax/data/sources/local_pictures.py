"""Paths of pictures as data sets write them: relative to a folder, inside it, there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from orthus_jax.errors import BadRequest


def local_picture(root: Path, name: Any, *, what: str = '"image"') -> Path:
  """The file that a data set's path of a picture names; it needn't be there.

  Args:
    root: the folder that the path starts from.
    name: as the data set writes it, with slashes.
    what: how its field is called, for messages.

  Raises:
    BadRequest: it is no path, or leads out of the folder.
  """
  if not isinstance(name, str) or not name.strip() or "\0" in name:
    raise BadRequest(f"{what} must be a path, got {name!r}")
  path = PurePosixPath(name)
  if "://" in name:
    raise BadRequest(f"the picture {name!r} is an address, and addresses are never fetched: give a file's path")
  if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).is_absolute():
    raise BadRequest(f"the picture {name!r} lies outside the folder; give a path inside it")
  return root / path


def picture_root(folder: Path, names: Iterable[Any]) -> Path:
  """Where paths of pictures start from: the folder of their rows, or "images" in it if the first one found lies there."""
  for name in names:
    try:
      if local_picture(folder, name).is_file():
        return folder
      if local_picture(folder / "images", name).is_file():
        return folder / "images"
    except BadRequest:
      continue
  return folder

"""Paths as users give them, and whether what they name can be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
import stat
import tempfile

from orthus_jax.errors import BadRequest


def user_path(text: str) -> str:
  """A path as a user gave it, its ~ expanded: a shell leaves one alone behind an =, or in a file.

  Raises:
    BadRequest: if it names the home directory of nobody.
  """
  found = os.path.expanduser(text)
  if found.startswith("~"):
    raise BadRequest(f"{text}: there is no home directory {text.split('/')[0]}; write ./{text} for a file of that name")
  return found


def check_writable(target: Path, *, option: str, file: bool = False) -> None:
  """Sees ahead of the work that a folder, or a file, can be made and written; leaves nothing behind.

  Args:
    target: what is to be written.
    option: that names it, for the message.
    file: whether it is a file.

  Raises:
    BadRequest: if it can't.
  """
  if target.parts and target.parts[0] in ("gs:", "s3:"):
    raise BadRequest(f"{option} names a bucket, and is written to disk alone: name a folder, and upload it")
  absolute = there = target.absolute()
  try:
    while (found := _lstat(there)) is None:
      there = there.parent
    if there == absolute and file:
      there = there.parent
      if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EEXIST, "something that is no file has its name")
    with tempfile.TemporaryFile(dir=there):
      pass
  except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
    why = f"{there} is no directory" if isinstance(e, NotADirectoryError) else getattr(e, "strerror", None) or str(e)
    why = f"{there}: {why}" if isinstance(e, (FileNotFoundError, PermissionError)) else why
    raise BadRequest(f"{option}={target} can't be written ({why}): choose another place") from e


def _lstat(path: Path) -> os.stat_result | None:
  """None where there is nothing; a name that can't be one raises."""
  try:
    return os.lstat(path)
  except (FileNotFoundError, NotADirectoryError):
    return None

"""What is noted of a folder that was brought from a bucket: which objects lie in it, as they were, and which come later."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import functools
import json
import os
from pathlib import Path
import re
import threading
import time
import types

from orthus_jax import files
from orthus_jax.storage.bucket import Entry

# In a brought folder: where it comes from, the objects that lie in it as they were then, those that come when they are read.
INDEX = ".brought"
_PLANS = "plans"  # made here beside prepared data
_ABANDONED = 3600.0  # seconds for which a half-written file is left alone: another process may be at it
_lock = threading.Lock()


def index(folder: Path) -> dict[str, list]:
  """Size and tag of each object that was brought."""
  return files.read_json(folder / INDEX).get("objects", {})


@functools.lru_cache(maxsize=8)
def index_at(folder: Path, time: int) -> dict[str, list]:
  """As `index`, read once as it was at a time: it may name many objects."""
  return index(folder)


def has(path: Path, size: int) -> bool:
  """Whether a file is there, and of that size."""
  try:
    return path.stat().st_size == size
  except OSError:
    return False


def note(
    url: str, target: Path, new: Mapping[str, Entry] = types.MappingProxyType({}), *,
    later: Mapping[str, Entry] | None = None, gone: Collection[str] = (),
) -> None:  # fmt: skip
  """Notes objects that came, those that come later (by default as it was noted before), and those that have gone."""
  with _lock:
    old = files.read_json(target / INDEX)
    objects = {n: e for n, e in old.get("objects", {}).items() if n not in gone} | {n: [e.size, e.tag] for n, e in new.items()}
    told = old.get("later", {}) if later is None else {n: [e.size, e.tag] for n, e in later.items()}
    noted = {"url": url, "objects": objects, "later": told}
    if noted != old:
      files.write_text(target / INDEX, json.dumps(noted))


def leave_out_gone(url: str, target: Path, found: Collection[str], *, whole: bool = False) -> None:
  """Removes what was brought of a folder and isn't in the bucket any more.

  Args:
    url: the folder's.
    target: where it was brought to.
    found: the names that stay.
    whole: they are all that there are, so that what came with a folder above, or before a command was killed, goes too.
  """
  gone = index(target).keys() - found
  if whole:
    here = (Path(folder, name) for folder, _, names in os.walk(target) for name in names)
    mine = {p.relative_to(target).as_posix() for p in here if p.parent.name != _PLANS and (p.name[0] != "." or _left(p))}
    gone |= mine.difference(found)
  if gone:
    for name in gone:
      (target / name).unlink(missing_ok=True)
    note(url, target, gone=gone)
    for above in target.parents:
      if (above / INDEX).is_file():
        first = target.relative_to(above).as_posix()
        note(files.read_json(above / INDEX).get("url", ""), above, gone={f"{first}/{n}" for n in gone})


def _left(path: Path) -> bool:
  """Whether a file is what `Bucket.get` was at when its process was killed, some time ago."""
  try:
    old = time.time() - path.stat().st_mtime > _ABANDONED
  except FileNotFoundError:  # another process has just ended it
    return False
  return old and re.fullmatch(r"\..*[0-9a-f]{32}", path.name) is not None

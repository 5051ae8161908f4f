"""What a command that prepares data left behind when it was stopped: which of its parts can be relied on.

A part is named in unfinished.json once its files have been handed to the disk, with the bytes that each of them has. A machine
that lost its power may still have lost some, and so may whoever copied the folder: from the first part on of which a file isn't
as it is noted, all is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import logging
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line, write_text

_log = logging.getLogger(__name__)
UNFINISHED = "unfinished.json"
PARTS = "parts"
_PART = {"rows": int, "read": int, "documents": int, "pictures": int, "files": dict, "digest": str}
Sizes = Callable[[str], int | None]  # bytes of a file of the folder, by its name; None where there is none


@dataclasses.dataclass(frozen=True)
class Part:
  """A part that is complete.

  Attributes:
    told: what unfinished.json says of it.
    keys: uint8 [n, 16], of its pictures.
    rejected, held, passed: as of `parts.Totals`.
  """

  told: Mapping[str, Any]
  keys: np.ndarray
  rejected: list[tuple[str, str, str]]
  held: Mapping[str, int]
  passed: Remarks


def note(number: int, suffix: str) -> str:
  """The name of a file with what is noted of a part."""
  return f"{PARTS}/{number:05d}.{suffix}"


def parse(text: str | bytes, called: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """What unfinished.json says: the request, and its complete parts.

  Args:
    text: it.
    called: what messages call the folder.

  Raises:
    BadRequest: it can't be read.
  """
  try:
    state = json.loads(text)
    request, parts = dict(state["request"]), [dict(part) for part in state["parts"]]
    if not all(isinstance(part[name], kind) for part in parts for name, kind in _PART.items()):
      raise ValueError("a part isn't one")
    if not all(isinstance(part.get("sizes", {}), dict) for part in parts):
      raise ValueError("sizes are none")
  except (ValueError, KeyError, TypeError) as e:
    raise BadRequest(f"{called}/{UNFINISHED} can't be read: remove {called} and prepare it anew") from e
  return request, parts


def whole(parts: list[dict[str, Any]], sizes: Sizes) -> int:
  """How many of the first parts have all their files as they are noted; an earlier version noted no sizes."""
  for number, part in enumerate(parts):
    noted = dict.fromkeys((*part["files"], note(number, "npz"), note(number, "json"))) | part.get("sizes", {})
    if any((there := sizes(name)) is None or size not in (None, there) for name, size in noted.items()):
      return number
  return len(parts)


def on_disk(folder: Path) -> Sizes:
  """Sizes of a folder's files."""

  def size(name: str) -> int | None:
    try:
      return (folder / name).stat().st_size
    except OSError:
      return None

  return size


def resume(folder: Path, request: dict[str, Any], *, called: str, sizes: Sizes) -> Iterator[Part]:
  """The parts behind which a command goes on, one by one; in the end others are struck out of unfinished.json.

  Args:
    folder: what lies there.
    request: what all depends on; must be the same to go on.
    called: what messages call the folder.
    sizes: of its files.

  Raises:
    BadRequest: unfinished.json can't be read, or is of another request.
  """
  file = folder / UNFINISHED
  if not file.exists():
    return
  try:
    there, parts = parse(file.read_bytes(), called)
  except OSError as e:
    raise BadRequest(f"{file} can't be read ({e.strerror}): see to the disk, and the same command goes on") from e
  wanted = json.loads(json.dumps(request))
  if parts and there != wanted:
    other = next(k for k in {**there, **wanted} if there.get(k) != wanted.get(k))
    ours, theirs = (str(r.get(other)) for r in (wanted, there))
    files_alone = other == "source" and _without_digests(ours) == _without_digests(theirs)
    raise BadRequest(
        f"{called} holds unfinished data of another {other}"
        f" ({'its files have changed since' if files_alone else f'{theirs}, not {ours}'}):"
        " go on with the command that began it, or choose another --out or remove it"
    )
  good, reason = 0, "its files are missing or cut short"
  for number, part in enumerate(parts[: whole(parts, sizes)]):
    try:
      found = _load(folder, number, part)
    except Exception as e:  # numpy, zipfile, zlib and json each have their own
      reason = first_line(e)
      break
    yield found
    good += 1
  if good < len(parts):
    _log.warning("%s: part %d of %d is damaged (%s): it is done again, and what follows", called, good + 1, len(parts), reason)
    write_text(file, json.dumps({"request": there, "parts": parts[:good]}, indent=1))


def _load(folder: Path, number: int, part: Mapping[str, Any]) -> Part:
  with np.load(folder / note(number, "npz")) as index:
    keys, sizes_DV3 = index["keys"], index["sizes_DV3"]
    if not len(sizes_DV3) == len(index["learnt_text_D"]) == len(index["kinds"]) == part["documents"]:
      raise ValueError("its sizes are of other documents")
  if keys.shape != (part["pictures"], 16):
    raise ValueError("its keys are of other pictures")
  noted = json.loads((folder / note(number, "json")).read_text(encoding="utf-8"))
  rejected = [(str(source), str(record), str(reason)) for source, record, reason in noted["rejected"]]
  return Part(part, keys, rejected, dict(noted["held"]), Remarks.from_json(noted["passed"]))


def _without_digests(identity: str) -> str:
  """What a source is, whatever is in its files (`Layout.fingerprint`)."""
  return re.sub(r"\b[0-9a-f]{16}\b", "", identity)


def is_half(file: Path) -> bool:
  """Whether it is what `write_text` left of one of these files when its process was killed."""
  return file.name.startswith((f".{UNFINISHED}.", ".prepared.json.", ".samples.html."))


def sync(*paths: Path) -> None:
  """Has the disk keep what was written to files, and folders' names, before anything else that is written is relied on.

  Raises:
    OSError: it can't keep a file.
  """
  for path in paths:
    handle = os.open(path, os.O_RDONLY)
    try:
      # Some network file systems refuse it for folders.
      with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        os.fsync(handle)
    finally:
      os.close(handle)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
  """A block that writes into a folder of prepared data, and nothing else that may fail.

  Raises:
    BadRequest: something couldn't be written.
  """
  try:
    yield
  except (OSError, RuntimeError) as e:  # RuntimeError: ArrayRecord's
    why = (e.strerror if isinstance(e, OSError) else "") or first_line(e)
    raise BadRequest(f"{folder} can't be written ({why}): see to the disk, and the same command goes on") from e

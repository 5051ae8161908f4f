"""Where the members of a tar file lie, so that they can be read at random, and what of the file can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import tarfile
from typing import BinaryIO, NamedTuple

from orthus_jax.errors import BadRequest

_BLOCK = 512
_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
CUT = "the file is cut short there"


class Member(NamedTuple):
  """A regular file in a tar file.

  Attributes:
    archive: which archive of the file it stands in, of several one after the other.
    name: as it is stored; bytes that aren't UTF-8 are surrogates.
    offset: where its bytes begin.
    size: how many it has, holes included.
    stored: of a sparse one, (place in it, length) of each stretch that isn't a hole; they lie one after the other.
  """

  archive: int
  name: str
  offset: int
  size: int
  stored: tuple[tuple[int, int], ...] | None = None


class Scan(NamedTuple):
  """What a tar file holds.

  Attributes:
    members: regular files that are whole; a hard link to one of them stands for it.
    faults: (where, what is wrong there) of what can't be read.
    remarks: (kind, name) of what else is in it; see `bad_records.Remarks`.
  """

  members: list[Member]
  faults: list[tuple[str, str]]
  remarks: list[tuple[str, str]]


def scan(file: Path) -> Scan:
  """Reads the headers of a plain tar file, of all archives in it where several follow each other.

  Raises:
    OSError: the file system fails.
  """
  found = Scan([], [], [])
  size = file.stat().st_size
  with file.open("rb") as f:
    at: int | None = 0
    archive = 0
    places: dict[str, Member] = {}
    while at is not None and at < size:
      end = at
      for member, end in _readable(f, at, size):
        _note(member, archive, end, size, found, places)
      at = _skip_zeros(f, end) if end <= size else None
      if at is None:
        if end >= size and (not found.faults or found.faults[-1][1] != CUT):  # a tar file ends with blocks of zeros
          found.faults.append((f"byte {size:,}", CUT))
      elif at > end and _is_header(_block(f, at)):
        archive += 1
        found.remarks.append(("archives behind another in their file, read too", f"byte {at:,}"))
      else:  # not a header, and no end
        broken, at = at, _next_header(f, at + 1)
        until = f"up to byte {at:,}" if at is not None else "to its end"
        found.faults.append((f"from byte {broken:,} {until}", "no tar header stands there"))
  return found


def read(file: Path, member: Member) -> bytes:
  """A member's bytes, with zeros where a sparse one has holes.

  Raises:
    BadRequest: the file has become shorter.
    OSError: the file system fails.
  """
  data = bytearray(member.size if member.stored is not None else 0)
  with file.open("rb") as f:
    f.seek(member.offset)
    for at, n in ((0, member.size),) if member.stored is None else member.stored:
      piece = f.read(n)
      if len(piece) < n:
        raise BadRequest(CUT)
      data[at : at + n] = piece
  return bytes(data)


def _note(member: tarfile.TarInfo, archive: int, end: int, size: int, found: Scan, places: dict[str, Member]) -> None:
  """Puts a member where it belongs; a folder holds nothing. `places` has those to which hard links may lead."""
  if member.isreg():
    sparse = getattr(member, "sparse", None)
    stretches = None if sparse is None else tuple((at, n) for at, n in sparse if n)
    bounds = [(0, 0), *stretches, (member.size, 0)] if stretches is not None else []
    stored = member.size if stretches is None else sum(n for _, n in stretches)
    if member.offset_data + stored > size:
      found.faults.append((member.name, CUT))
    elif (
        any(n < 0 or at + n > following for (at, n), (following, _) in zip(bounds, bounds[1:]))
        or member.offset_data + stored > end
        or stretches is None and "GNU.sparse.major" in member.pax_headers
    ):
      found.faults.append((member.name, "it is sparse, and its map of holes can't be read"))
    else:
      places[member.name] = Member(archive, member.name, member.offset_data, member.size, stretches)
      found.members.append(places[member.name])
  elif member.islnk() and member.linkname in places:
    places[member.name] = places[member.linkname]._replace(archive=archive, name=member.name)
    found.members.append(places[member.name])
  elif member.islnk() or member.issym():
    found.remarks.append(("links passed over", member.name))
  elif not member.isdir():
    found.remarks.append(("members passed over that are no files", member.name))


def _readable(f: BinaryIO, at: int, size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
  """Members from a place on, each with where the next header should stand, until one can't be read."""
  f.seek(at)
  try:
    with tarfile.open(fileobj=f, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        if member.size < 0 or tar.offset < member.offset_data:  # tarfile would go round in circles
          return
        yield member, tar.offset
        if tar.offset > size:
          return
  except OSError:
    raise
  except Exception:
    return  # tarfile raises whatever it stumbles over: TarError, ValueError, IndexError, RecursionError, MemoryError, …


def _block(f: BinaryIO, at: int) -> bytes:
  f.seek(at)
  return f.read(_BLOCK)


def _is_header(block: bytes) -> bool:
  try:
    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except (tarfile.HeaderError, IndexError):
    return False
  return True


def _skip_zeros(f: BinaryIO, at: int) -> int | None:
  """The first block from a place on that isn't zeros, None at the file's end."""
  f.seek(at)
  while chunk := f.read(_CHUNK):
    if rest := chunk.lstrip(b"\0"):
      return at + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
    at += len(chunk)
  return None


def _next_header(f: BinaryIO, at: int) -> int | None:
  """The next tar header, wherever it stands: what follows a file that was cut short isn't aligned."""
  f.seek(at)
  chunk = f.read(_CHUNK)
  while len(chunk) >= _BLOCK:
    place = chunk.find(_MAGIC, _MAGIC_AT)
    while 0 <= place <= len(chunk) - _BLOCK + _MAGIC_AT:
      if _is_header(chunk[place - _MAGIC_AT : place - _MAGIC_AT + _BLOCK]):
        return at + place - _MAGIC_AT
      place = chunk.find(_MAGIC, place + 1)
    at += len(chunk) - _BLOCK + 1
    chunk = chunk[1 - _BLOCK :] + f.read(_CHUNK)
    if len(chunk) < _BLOCK:
      break
  return None

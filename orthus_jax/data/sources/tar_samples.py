"""Which members of a tar file make a sample of a picture and a text, and what its text is.

Members that follow each other and share a name make one: a picture (`a.jpg`), and a text: the first of `a.txt`,
`a.caption` and a JSON object with a "caption" or "text" (`a.json`) that holds one. As in WebDataset a name ends at its first
dot, so that `a.seg.png` is a part of `a`; where there is no whole `a`, it ends at the last one, and `2.1.jpg` goes with
`2.1.txt`. Of several pictures the first kind in `PICTURES` is taken. What is passed over is counted and named.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import functools
import itertools
import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.data.sources.tar_members import Member
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

# Photographs ahead of what may lie beside them: masks, depths, thumbnails.
PICTURES = (
    "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "avifs", "png", "apng", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "mpo",
    "tif", "tiff", "bmp", "dib", "ppm", "pnm", "pgm", "pbm", "gif", "qoi", "tga", "icb", "vda", "vst", "sgi", "rgb", "rgba",
    "bw", "ras", "pcx", "dcx", "psd", "pcd", "dds", "blp", "icns", "ico", "cur", "xbm", "xpm",
)  # fmt: skip
_TEXTS = ("txt", "caption", "json")
_KNOWN = frozenset(PICTURES + _TEXTS)
_MAX_TEXT = 1 << 20  # bytes


class Sample(NamedTuple):
  """A picture and its texts.

  Attributes:
    file: the number of its file.
    name: its name; unique in the file.
    picture: where its picture lies.
    texts: (extension, where it lies), in the order in which they are looked at.
    fault: what keeps it from being read, or nothing.
  """

  file: int
  name: str
  picture: Member | None
  texts: tuple[tuple[str, Member], ...]
  fault: str


def samples(file: int, file_name: str, members: list[Member], remarks: Remarks) -> Iterator[Sample]:
  """Members that follow each other under one name; any picture or text makes a sample.

  Args:
    file, file_name: the number of the members' file, and what it is called.
    members: in the order of the file.
    remarks: gets what is passed over.
  """
  times: collections.Counter[str] = collections.Counter()
  for (_, whole), group in itertools.groupby(_named(members, file_name, remarks), lambda m: (m[0].archive, m[1])):
    parts: dict[str, dict[str, list[Member]]] = {}  # by name up to the last dot, and extension
    for member, _ in group:
      name = str(PurePosixPath(member.name))
      stem, _, extension = name.rpartition(".")
      if extension.lower() in _KNOWN:
        parts.setdefault(stem, {}).setdefault(extension.lower(), []).append(member)
      else:
        remarks.add(f".{printable(extension.lower())} members passed over", f"{file_name}/{name}")
    is_whole = not _fault(whole, parts.get(whole, {}))
    for stem, found in parts.items():
      fault = _fault(stem, found)
      pictures = [m for e in PICTURES for m in found.get(e, ())]
      if fault and is_whole:  # parts of the whole one
        extra = [m for ms in found.values() for m in ms]
      else:
        times[stem] += 1
        if times[stem] > 1:
          remarks.add("samples of one name in a file, numbered", f"{file_name}/{stem}")
        name = stem if times[stem] == 1 else f"{stem}#{times[stem]}"
        texts = tuple((e, m) for e in _TEXTS for m in found.get(e, ()))
        yield Sample(file, name, pictures[0] if pictures else None, texts, fault)
        extra = [] if fault else pictures[1:]
      for member in extra:
        remarks.add("pictures or texts passed over beside a whole sample of their name", f"{file_name}/{member.name}")


def _named(members: list[Member], file_name: str, remarks: Remarks) -> Iterator[tuple[Member, str]]:
  """Members that have an extension, with their names up to the first dot."""
  for member in members:
    path = PurePosixPath(member.name)
    base, dot, _ = path.name.partition(".")
    if base and dot:
      yield member, str(path.parent / base)
    else:
      kind = "hidden files passed over" if dot else "members passed over that have no extension"
      remarks.add(kind, f"{file_name}/{member.name}")


def _fault(name: str, found: dict[str, list[Member]]) -> str:
  """What keeps a sample from being one, or nothing."""
  if twice := next((e for e, members in found.items() if len(members) > 1), ""):
    return f"more than one .{twice} is called {name}"
  for what, extensions in (("picture", PICTURES), ("text", _TEXTS)):
    if not any(e in found for e in extensions):
      return f"the sample has no {what}: one of its name must stand next to it in the file"
  return ""


def text(file: Path, texts: tuple[tuple[str, Member], ...]) -> str:
  """The first of a sample's texts that is one.

  Raises:
    BadRequest: none is; what is wrong with the first.
  """
  first: BadRequest | None = None
  for extension, member in texts:
    try:
      if member.size > _MAX_TEXT:
        raise BadRequest(f"its .{extension} has {member.size:,} bytes, more than the {_MAX_TEXT:,} allowed")
      return _text(retry(str(file), functools.partial(tar_members.read, file, member)), extension)
    except BadRequest as e:
      first = first or e
  assert first is not None  # a sample without texts is a fault
  raise first


def _text(data: bytes, extension: str) -> str:
  try:
    text: Any = data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadRequest(f"its text isn't UTF-8 (byte {e.start + 1}); save it as UTF-8") from e
  if extension == "json":
    try:
      fields = json.loads(text)
    except (ValueError, RecursionError) as e:
      raise BadRequest(f"its JSON can't be read: {e}") from e
    # "text" may be what a picture shows, beside a caption that tells of it; LAION writes TEXT.
    said = [v for key in ("caption", "text") for k, v in fields.items() if k.lower() == key] if isinstance(fields, dict) else []
    text = next((v for v in said if isinstance(v, str) and v.strip()), None)
    if text is None:
      raise BadRequest('its JSON has neither "text" nor "caption" with words in it')
  check_text(text)
  return text.strip()

"""Which members of a tar file make a sample: a picture and a text, or two pictures and what makes one of the other.

Members that follow each other and share a name make one: a picture (`a.jpg`), and a text: by default the first of `a.txt`,
`a.caption` and a JSON object with a "caption" or "text" (`a.json`) that holds one. As in WebDataset a name ends at its first
dot, so that `a.seg.png` is a part of `a`; where there is no whole `a`, it ends at the last one, and `2.1.jpg` goes with
`2.1.txt`. Of several pictures the first kind in `PICTURES` is taken. `a.input.jpg` and `a.output.jpg` are an edit, whose text
is `a.instruction.txt`, `a.edit.txt` or one of `a`. What is passed over is counted and named.
"""

from __future__ import annotations

import array
import collections
from collections.abc import Iterator, Sequence
import functools
import itertools
import marshal
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.data.sources.tar_members import Member
from orthus_jax.data.sources.tar_texts import CAPTIONS, INSTRUCTIONS, TextPart

# Photographs ahead of what may lie beside them: masks, depths, thumbnails.
PICTURES = (
    "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "avifs", "png", "apng", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "mpo",
    "tif", "tiff", "bmp", "dib", "ppm", "pnm", "pgm", "pbm", "gif", "qoi", "tga", "icb", "vda", "vst", "sgi", "rgb", "rgba",
    "bw", "ras", "pcx", "dcx", "psd", "pcd", "dds", "blp", "icns", "ico", "cur", "xbm", "xpm",
)  # fmt: skip
EDIT = ("input", "output")

_Parts = dict[str, dict[str, list[Member]]]  # by name up to the last dot, and extension


class Sample(NamedTuple):
  """A picture, or an edit's two, and its texts.

  Attributes:
    file: the number of its file.
    name: its name; unique in the file.
    pictures: where its picture lies; of an edit, the one that is given and the one that it becomes.
    texts: parts that can hold its text, in the order in which they are looked at, and where they lie.
    fault: what keeps it from being read, or nothing.
  """

  file: int
  name: str
  pictures: tuple[Member, ...]
  texts: tuple[tuple[TextPart, Member], ...]
  fault: str


class Samples(Sequence[Sample]):
  """Many samples in little memory: a tenth of what their objects take.

  Args:
    parts: those that texts of samples may be.
  """

  def __init__(self, parts: Sequence[TextPart]):
    self._parts = tuple(dict.fromkeys(parts))
    self._bytes = bytearray()
    self._ends = array.array("q", [0])

  def append(self, sample: Sample) -> None:
    pictures = tuple(map(tuple, sample.pictures))
    texts = tuple((self._parts.index(part), tuple(member)) for part, member in sample.texts)
    self._bytes += marshal.dumps((sample.file, sample.name, pictures, texts, sample.fault))
    self._ends.append(len(self._bytes))

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(index)
    file, name, pictures, texts, fault = marshal.loads(self._bytes[self._ends[index] : self._ends[index + 1]])
    of_part = tuple((self._parts[part], Member(*member)) for part, member in texts)
    return Sample(file, name, tuple(Member(*m) for m in pictures), of_part, fault)


@functools.lru_cache(1024)
def _clean(name: str) -> str:
  """A member's name as others are compared with it: "a.jpg" for "./a.jpg"."""
  return str(PurePosixPath(name))


def samples(
    file: int, file_name: str, members: list[Member], remarks: Remarks, texts: tuple[TextPart, ...] = ()
) -> Iterator[Sample]:
  """Members that follow each other under one name; any picture or text makes a sample.

  Args:
    file, file_name: the number of the members' file, and what it is called.
    members: in the order of the file.
    remarks: gets what is passed over.
    texts: the parts that hold texts, in order of preference; none: the usual ones.
  """
  times: collections.Counter[str] = collections.Counter()
  captions, instructions = texts or CAPTIONS, texts or INSTRUCTIONS
  known = {*PICTURES, *(t.part.rpartition(".")[2] for t in captions + instructions)}
  for (_, whole), group in itertools.groupby(_named(members, file_name, remarks), lambda m: (m[0].archive, m[1])):
    parts: _Parts = {}
    for member, _ in group:
      name = _clean(member.name)
      stem, _, extension = name.rpartition(".")
      if extension.lower() in known:
        parts.setdefault(stem, {}).setdefault(extension.lower(), []).append(member)
      else:
        remarks.add(f".{printable(extension.lower())} members passed over", f"{file_name}/{name}")
    found = _of_a_name(file, whole, parts, captions, instructions)
    covered = {m for s in found if not s.fault for m in (*s.pictures, *(m for _, m in s.texts))}
    bad = {stem for s in found if s.fault for stem in (s.name, *_ends(s.name), *_apart(s))}
    left = [m for stem in parts if stem not in bad for ms in parts[stem].values() for m in ms if m not in covered]
    for sample in found:
      times[sample.name] += 1
      if times[sample.name] > 1:
        remarks.add("samples of one name in a file, numbered", f"{file_name}/{sample.name}")
        sample = sample._replace(name=f"{sample.name}#{times[sample.name]}")
      yield sample
    for member in left:
      remarks.add("pictures or texts passed over beside a whole sample of their name", f"{file_name}/{member.name}")


def _of_a_name(
    file: int, whole: str, parts: _Parts, captions: tuple[TextPart, ...], instructions: tuple[TextPart, ...]
) -> list[Sample]:
  """The samples of members whose names agree up to their first dot."""
  made = {stem: _pair(file, stem, parts, captions) for stem in parts}
  edits = {}
  for base in dict.fromkeys(s.rpartition(".")[0] for s in parts if s.rpartition(".")[2] in EDIT):
    pairs = [stem for stem in (base, *_ends(base)) if stem in made and not made[stem].fault]
    edit = _edit(file, base, parts, instructions)
    if base in pairs or (edit.fault and (pairs or len(edit.pictures) + bool(edit.texts) < 2)):
      continue
    edits[base] = edit
  good = [s for s in (*edits.values(), *made.values()) if not s.fault]
  apart = {n for s in (*edits.values(), *good) for n in _apart(s) if n in made and made[n].fault}
  for stem in [*(n for base in edits for n in (base, *_ends(base))), *apart]:
    made.pop(stem, None)
  wholes = {s.name for s in good}
  is_part = lambda s: s.fault and (whole in wholes or any(s.name.startswith(f"{w}.") for w in wholes))  # noqa: E731
  return [s for s in (*edits.values(), *made.values()) if not is_part(s)]


def _ends(base: str) -> tuple[str, ...]:
  return tuple(f"{base}.{end}" for end in EDIT)


def _apart(sample: Sample) -> set[str]:
  """Names up to their last dot of a sample's texts, where they aren't the sample's own."""
  return {_clean(m.name).rpartition(".")[0] for _, m in sample.texts} - {sample.name}


def _pair(file: int, name: str, parts: _Parts, wanted: tuple[TextPart, ...]) -> Sample:
  """A picture and its texts, with what keeps it from being a sample."""
  pictures, texts = _pictures(parts, name), _texts(parts, name, wanted)
  missing = "picture" if not pictures else "text" if not texts else ""
  fault = _twice(parts, name) or missing and f"the sample has no {missing}: one of its name must stand next to it in the file"
  return Sample(file, name, pictures[:1], texts, fault)


def _edit(file: int, name: str, parts: _Parts, wanted: tuple[TextPart, ...]) -> Sample:
  """An edit's pictures and texts, with what keeps it from being one."""
  found = {end: _pictures(parts, end) for end in _ends(name)}
  texts = _texts(parts, name, wanted)
  missing = next((f"picture {end}" for end, pictures in found.items() if not pictures), "" if texts else "instruction")
  twice = next(filter(None, (_twice(parts, stem) for stem in (name, *found))), "")
  fault = twice or missing and f"the edit has no {missing}: one of its name must stand next to it in the file"
  return Sample(file, name, tuple(p[0] for p in found.values() if p), texts, fault)


def _pictures(parts: _Parts, name: str) -> tuple[Member, ...]:
  found = parts.get(name, {})
  return tuple(m for e in PICTURES for m in found.get(e, ()))


def _texts(parts: _Parts, name: str, wanted: tuple[TextPart, ...]) -> tuple[tuple[TextPart, Member], ...]:
  places = ((t, f"{name}.{t.part}".rpartition(".")) for t in wanted)
  return tuple((t, m) for t, (stem, _, e) in places for m in parts.get(stem, {}).get(e, ()))


def _twice(parts: _Parts, name: str) -> str:
  extension = next((e for e, members in parts.get(name, {}).items() if len(members) > 1), "")
  return extension and f"more than one .{extension} is called {name}"


def _named(members: list[Member], file_name: str, remarks: Remarks) -> Iterator[tuple[Member, str]]:
  """Members that have an extension, with their names up to the first dot."""
  for member in members:
    folder, slash, name = _clean(member.name).rpartition("/")
    base, dot, _ = name.partition(".")
    if base and dot:
      yield member, f"{folder}{slash}{base}"
    else:
      kind = "hidden files passed over" if dot else "members passed over that have no extension"
      remarks.add(kind, f"{file_name}/{member.name}")

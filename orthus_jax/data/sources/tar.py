"""Image-text pairs from uncompressed tar files, as WebDataset lays them out.

Files that follow each other and share a name make a sample: a picture (`a.jpg`), and a text: the first of `a.txt`,
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
import operator
import os
from pathlib import Path, PurePosixPath
import re
from typing import Any, NamedTuple

from orthus_jax.config import PixelsConfig
from orthus_jax.data.documents import Document
from orthus_jax.data.images import fit, load_image
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members
from orthus_jax.data.sources.bad_records import BadRecords, Remarks, printable
from orthus_jax.data.sources.folder import Pairs, check_text, pair
from orthus_jax.data.sources.tar_members import Member
from orthus_jax.errors import BadRequest

# Photographs ahead of what may lie beside them: masks, depths, thumbnails.
PICTURES = (
    "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "avifs", "png", "apng", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "mpo",
    "tif", "tiff", "bmp", "dib", "ppm", "pnm", "pgm", "pbm", "gif", "qoi", "tga", "icb", "vda", "vst", "sgi", "rgb", "rgba",
    "bw", "ras", "pcx", "dcx", "psd", "pcd", "dds", "blp", "icns", "ico", "cur", "xbm", "xpm",
)  # fmt: skip
_TEXTS = ("txt", "caption", "json")
_MAX_TEXT, _MAX_PICTURE = 1 << 20, 1 << 28  # bytes
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class _Sample(NamedTuple):
  file: int
  name: str
  picture: Member | None
  texts: tuple[tuple[str, Member], ...]  # (extension, …) in the order of _TEXTS
  fault: str


class TarSource:
  """A random-access source of Documents; what a bad sample or a broken file holds is None, counted and named.

  A pair yields documents as in `folder.FolderSource`.

  Attributes:
    bad: the count of bad records; a stretch of a file that can't be read as tar counts as one.
    remarks: the count of what is passed over.
  """

  def __init__(
      self,
      path: str | os.PathLike,
      *,
      resolution: int,
      pixels: PixelsConfig = PixelsConfig(),
      max_bad_share: float = 0.01,
      pairs: Pairs = "both",
  ):
    """Finds the samples.

    Args:
      path: a tar file, or a folder that holds some, at any depth.
      resolution, pixels, max_bad_share, pairs: as for `folder.FolderSource`.

    Raises:
      BadRequest: there is no tar file or no sample, one is compressed, or too much of the files is broken.
    """
    self.path = Path(path)
    self.resolution, self.pixels, self.pairs = resolution, pixels, pairs
    self.remarks = Remarks()
    broken: list[tuple[Path, str, str]] = []
    self.files = _find(self.path, self.remarks, broken)
    self._samples: list[_Sample] = []
    for number, file in enumerate(self.files):
      try:
        found = retry(str(file), functools.partial(tar_members.scan, file))
      except OSError as e:
        broken.append((file, "all of it", f"the file can't be reached: {e.strerror}"))
        continue
      for kind, name in found.remarks:
        self.remarks.add(kind, f"{self._name(file)}/{name}")
      samples = list(_samples(number, self._name(file), found.members, self.remarks))
      if not samples and not found.faults:
        self.remarks.add("tar files without a sample", self._name(file))
      self._samples += samples
      broken += [(file, where, reason) for where, reason in found.faults]
    self.remarks.log(str(self.path))
    self.bad = BadRecords(max_share=max_bad_share, total=len(self._samples) + len(broken))
    for file, where, reason in broken:
      self.bad.saw()
      self.bad.report(str(file), where, reason)
    self.bad.check()
    if not self._samples:
      others = f"; it holds {'; '.join(self.remarks.lines())}" if self.remarks.counts else ""
      raise BadRequest(f"{str(self.path)!r} holds no sample: files such as a.jpg and a.txt, one after the other{others}")

  def __len__(self) -> int:
    return len(self._samples) * (2 if self.pairs == "both" else 1)

  def __getitem__(self, index: int) -> Document | None:
    """The document at a place, or None where its sample is bad.

    Raises:
      BadRequest: too many are bad.
      IndexError: there is no such place.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    number, second = divmod(index, 2) if self.pairs == "both" else (index, self.pairs == "to_text")
    sample = self._samples[number]
    self.bad.saw()
    try:
      return self._document(sample, to_text=bool(second))
    except BadRequest as e:
      self.bad.report(str(self.files[sample.file]), sample.name, str(e))
    except OSError as e:
      self.bad.report(str(self.files[sample.file]), sample.name, f"the file can't be read: {e.strerror or e}")
    self.bad.check()
    return None

  def __repr__(self) -> str:
    return f"TarSource({str(self.path)!r}, resolution={self.resolution}, pairs={self.pairs!r}, documents={len(self)})"

  def _name(self, file: Path) -> str:
    return (file.relative_to(self.path) if file != self.path else PurePosixPath(file.name)).as_posix()

  def _document(self, sample: _Sample, *, to_text: bool) -> Document:
    if sample.fault:
      raise BadRequest(sample.fault)
    assert sample.picture is not None  # it would be a fault
    file = self.files[sample.file]
    if sample.picture.size > _MAX_PICTURE:
      raise BadRequest(f"its picture has {sample.picture.size:,} bytes, more than the {_MAX_PICTURE:,} allowed")
    text = _first_text(file, sample.texts)
    shown = retry(str(file), functools.partial(tar_members.read, file, sample.picture))
    name = printable(f"{self._name(file)}/{sample.name}")
    return pair(text, fit(load_image(shown), self.resolution, self.pixels), to_text=to_text, name=name)


def _find(path: Path, remarks: Remarks, broken: list[tuple[Path, str, str]]) -> list[Path]:
  """The tar files at a place, in order.

  Raises:
    BadRequest: there is none, or one that is compressed.
  """
  if path.is_file():
    return [path]
  files, packed, been = [], [], set()

  def fail(e: OSError) -> None:
    broken.append((Path(e.filename), "all of it", f"the folder can't be read: {e.strerror}"))

  for folder, folders, names in os.walk(path, followlinks=True, onerror=fail):
    if (here := os.path.realpath(folder)) in been:  # links may lead in a circle
      folders.clear()
      continue
    been.add(here)
    for name in sorted([*names, *(f for f in folders if f.startswith("."))]):
      file = Path(folder, name)
      inside = file.relative_to(path).as_posix()
      if name.startswith("."):
        remarks.add("hidden files or folders passed over", inside)
      elif _PACKED.search(name):
        packed.append(file)
      elif file.suffix.lower() == ".tar":
        files.append(file)
      else:
        remarks.add(f"{printable(file.suffix.lower()) or 'other'} files passed over, which are no tar files", inside)
    folders[:] = [f for f in folders if not f.startswith(".")]
  if packed:
    raise tar_members.compressed(min(packed), f"and {len(packed) - 1} more" if len(packed) > 1 else "by its name")
  if not files:
    raise BadRequest(f"there is no tar file at {str(path)!r}; give one, or a folder that holds some")
  return sorted(files)


def _first_text(file: Path, texts: tuple[tuple[str, Member], ...]) -> str:
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


def _samples(file: int, file_name: str, members: list[Member], remarks: Remarks) -> Iterator[_Sample]:
  """Members that follow each other under one name; any picture or text makes a sample."""
  times: collections.Counter[str] = collections.Counter()
  for (_, whole), group in itertools.groupby(_named(members, file_name, remarks), lambda m: (m[0].archive, m[1])):
    parts: dict[str, dict[str, list[Member]]] = {}  # by name up to the last dot, and extension
    for member, _ in group:
      name = str(PurePosixPath(member.name))
      stem, _, extension = name.rpartition(".")
      if extension.lower() in PICTURES + _TEXTS:
        parts.setdefault(stem, {}).setdefault(extension.lower(), []).append(member)
      else:
        remarks.add(f".{printable(extension.lower())} members passed over", f"{file_name}/{name}")
    is_whole = not _fault(whole, parts.get(whole, {}))
    for stem, found in parts.items():
      fault = _fault(stem, found)
      pictures = [m for e in PICTURES for m in found.get(e, ())]
      extra = pictures[1:]
      if fault and is_whole:
        extra = [m for ms in found.values() for m in ms]
      else:
        times[stem] += 1
        if times[stem] > 1:
          remarks.add("samples of one name in a file, numbered", f"{file_name}/{stem}")
        name = stem if times[stem] == 1 else f"{stem}#{times[stem]}"
        texts = tuple((e, m) for e in _TEXTS for m in found.get(e, ()))
        yield _Sample(file, name, pictures[0] if pictures else None, texts, fault)
      for member in () if fault and not is_whole else extra:
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

"""Image-text pairs from uncompressed tar files, as WebDataset lays them out.

Files that follow each other and share a name up to its first dot make a sample: a picture (`a.jpg`), and a text (`a.txt`) or
a JSON object with a "text" or "caption" (`a.json`); others are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
import json
import operator
import os
from pathlib import Path, PurePosixPath
import tarfile
from typing import Any, BinaryIO, NamedTuple

from orthus_jax.config import PixelsConfig
from orthus_jax.data.documents import Document
from orthus_jax.data.images import fit, load_image
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.folder import Pairs, check_text, pair
from orthus_jax.errors import BadRequest

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_TEXTS = ("txt", "caption", "json")
_BLOCK = 512
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_MAX_TEXT, _MAX_PICTURE = 1 << 20, 1 << 28  # bytes


class _Part(NamedTuple):
  """A member's bytes; `extension` in lower case."""

  extension: str
  offset: int
  size: int


class _Sample(NamedTuple):
  file: int
  name: str
  parts: tuple[_Part, ...]


class TarSource:
  """A random-access source of Documents; what a bad sample or a broken file holds is None, counted and named.

  A pair yields documents as in `folder.FolderSource`.

  Attributes:
    bad: the count of bad records; a stretch of a file that can't be read as tar counts as one.
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
      path: a tar file, or a folder of them.
      resolution, pixels, max_bad_share, pairs: as for `folder.FolderSource`.

    Raises:
      BadRequest: there is no tar file or no sample, or too much of the files is broken.
    """
    self.path = Path(path)
    self.resolution, self.pixels, self.pairs = resolution, pixels, pairs
    self.files = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
    if not self.files or not (self.path.is_dir() or self.path.is_file()):
      raise BadRequest(f"there is no tar file at {str(self.path)!r}; give one, or a folder that holds some")
    self._samples: list[_Sample] = []
    broken: list[tuple[Path, str, str]] = []
    for number, file in enumerate(self.files):
      try:
        members, faults = retry(str(file), functools.partial(_scan, file))
        self._samples += _samples(number, members)
        broken += faults
      except OSError as e:
        broken.append((file, "all of it", f"the file can't be reached: {e.strerror}"))
    self.bad = BadRecords(max_share=max_bad_share, total=len(self._samples) + len(broken))
    for file, where, reason in broken:
      self.bad.saw()
      self.bad.report(str(file), where, reason)
    self.bad.check()
    if not self._samples:
      raise BadRequest(f"{str(self.path)!r} holds no sample: files such as a.jpg and a.txt, one after the other")

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

  def _document(self, sample: _Sample, *, to_text: bool) -> Document:
    picture = next((p for p in sample.parts if p.extension in _PICTURES), None)
    text = next((p for p in sample.parts if p.extension in _TEXTS), None)
    if picture is None or text is None:
      raise BadRequest(f"the sample has no {'picture' if picture is None else 'text'}")
    for part, most in ((text, _MAX_TEXT), (picture, _MAX_PICTURE)):
      if part.size > most:
        raise BadRequest(f"its .{part.extension} has {part.size:,} bytes, more than the {most:,} allowed")
    file = self.files[sample.file]
    said, shown = retry(str(file), lambda: [_read(file, part) for part in (text, picture)])
    pixels = fit(load_image(shown), self.resolution, self.pixels)
    return pair(_text(said, text.extension), pixels, to_text=to_text, name=f"{file.name}/{sample.name}")


def _read(file: Path, part: _Part) -> bytes:
  with file.open("rb") as f:
    f.seek(part.offset)
    data = f.read(part.size)
  if len(data) < part.size:
    raise BadRequest("the file is cut short there")
  return data


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
    text = next((fields[k] for k in ("text", "caption") if k in fields), None) if isinstance(fields, dict) else None
    if text is None:
      raise BadRequest('its JSON has neither "text" nor "caption"')
  check_text(text)
  return text.strip()


def _samples(file: int, members: list[tuple[str, _Part]]) -> Iterator[_Sample]:
  """Members that follow each other under one name; any picture or text makes a sample."""
  name = ""
  parts: list[_Part] = []
  for key, part in [*members, ("", None)]:
    if key != name or part is None:
      if any(p.extension in _PICTURES + _TEXTS for p in parts):
        yield _Sample(file, name, tuple(parts))
      name, parts = key, []
    if part is not None:
      parts.append(part)


def _scan(file: Path) -> tuple[list[tuple[str, _Part]], list[tuple[Path, str, str]]]:
  """What `_members` finds in a file, and what it can't read."""
  broken: list[tuple[Path, str, str]] = []
  return list(_members(file, broken)), broken


def _members(file: Path, broken: list[tuple[Path, str, str]]) -> Iterator[tuple[str, _Part]]:
  """(name up to the first dot, where it lies) of every regular file; appends what can't be read to `broken`."""
  size = file.stat().st_size
  with file.open("rb") as f:
    head = f.read(_BLOCK)
    packed = _PACKED.get(head[:2])
    if packed and head[257:262] != b"ustar":  # a tar file's first bytes are a name, which may be any
      raise BadRequest(f"{file} is compressed ({packed}), and can't be read at random: unpack it into a plain tar file")
    at: int | None = 0
    while at is not None and at < size:
      end = at
      for member in _readable(f, at):
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        base, _, extension = PurePosixPath(member.name).name.partition(".")
        if member.isreg() and base:
          if member.offset_data + member.size > size:
            broken.append((file, member.name, "the file is cut short there"))
          else:
            key = str(PurePosixPath(member.name).parent / base)
            yield key, _Part(extension.lower(), member.offset_data, member.size)
      at = None
      f.seek(end)
      following = f.read(_BLOCK)
      if not following and end == size:  # a tar file ends with blocks of zeros
        broken.append((file, f"byte {end:,}", "the file is cut short there"))
      if any(following):  # not a header, and no end
        at = _next_header(f, end + _BLOCK, size)
        until = f"up to byte {at:,}" if at is not None else "to its end"
        broken.append((file, f"from byte {end:,} {until}", "no tar header stands there"))


def _readable(f: BinaryIO, at: int) -> Iterator[tarfile.TarInfo]:
  """Members from a place on, until one can't be read."""
  f.seek(at)
  try:
    with tarfile.open(fileobj=f, mode="r:") as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        yield member
  except (tarfile.TarError, ValueError, OverflowError, EOFError):
    return


def _next_header(f: BinaryIO, at: int, size: int) -> int | None:
  """The next block that is a tar header."""
  while at + _BLOCK <= size:
    f.seek(at)
    block = f.read(_BLOCK)
    if block[257:262] == b"ustar":
      try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return at
      except tarfile.HeaderError:
        pass
    at += _BLOCK
  return None

"""What pictures need of their files' metadata, where the rest of it can't be read: how they are turned."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
from typing import Literal
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TIFF = (b"II*\0", b"MM\0*")
_EXIF = b"Exif\0\0"
_ORIENTATION = 274
_INTEGERS = {1: 1, 3: 2, 4: 4}  # bytes of TIFF's types of whole numbers
# Of TIFF's tags, those that say where pixels lie and how.
_KEPT_TAGS = {*range(254, 269), *range(273, 282), 284, 292, 293, 317, *range(320, 326), 338, 339, 347, *range(529, 533)}
# Of PNG's chunks that a reader may ignore, those that change how the picture looks here.
_KEPT_CHUNKS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
# Texts that may say how the picture is turned.
_KEPT_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MAX_TEXT = 1 << 16  # bytes as stored; what they inflate to is limited by Pillow
# Of JPEG's application segments, those that say how colours are stored; the second also how the picture is turned.
_KEPT_SEGMENTS = {0xE0: b"JFIF\0", 0xE1: _EXIF, 0xEE: b"Adobe"}


def without(source: str | os.PathLike | bytes) -> bytes | None:
  """A picture file without comments, colour profiles, previews and the like; None where it is of another format."""
  if not isinstance(source, (str, os.PathLike)):
    data = bytes(source)
    bare = next((bare for head, bare in _BARE.items() if data.startswith(head)), None)
    return bare(data) if bare else None
  with open(source, "rb") as f:
    known = f.read(8).startswith(tuple(_BARE))
  return without(Path(source).read_bytes()) if known else None


def orientation(exif: bytes) -> int:
  """How an EXIF block says that a picture is turned, 1 to 8, whatever else in it is broken; 0 where it doesn't say."""
  while exif.startswith(_EXIF):
    exif = exif[len(_EXIF) :]
  for tag, kind, at, order in _tags(exif):
    if tag == _ORIENTATION and kind in _INTEGERS:
      return int.from_bytes(exif[at + 8 : at + 8 + _INTEGERS[kind]], order)
  return 0


def _tags(tiff: bytes) -> Iterator[tuple[int, int, int, Literal["little", "big"]]]:
  """(tag, type, where it stands, byte order) of each entry of the first directory; none of what isn't TIFF."""
  order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
  if tiff[:4] in _TIFF:
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
      yield int.from_bytes(tiff[at : at + 2], order), int.from_bytes(tiff[at + 2 : at + 4], order), at, order


def _tiff(data: bytes) -> bytes:
  changed = bytearray(data)
  for tag, _, at, _ in _tags(data):
    if tag not in _KEPT_TAGS:
      changed[at + 2 : at + 4] = b"\0\0"  # of no type: readers skip it
  return bytes(changed)


def _png(data: bytes) -> bytes:
  parts, at = [_PNG], len(_PNG)
  while at + 8 <= len(data):
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    kind, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
    text = kind in (b"tEXt", b"zTXt", b"iTXt") and body.partition(b"\0")[0] in _KEPT_TEXTS and len(body) <= _MAX_TEXT
    whole = zlib.crc32(kind + body) == int.from_bytes(data[end - 4 : end], "big")
    if not kind[0] & 0x20 or whole and (text or kind in _KEPT_CHUNKS):
      parts.append(data[at:end])
    at = end
  return b"".join(parts)


def _jpeg(data: bytes) -> bytes:
  parts, at = [_JPEG], 2
  while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
    marker = data[at + 1]
    if marker == 0xFF:  # fill
      at += 1
      continue
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    kept = _KEPT_SEGMENTS.get(marker)
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or kept and data[at + 4 : end].startswith(kept):
      parts.append(data[at:end])
    at = end
  return b"".join([*parts, data[at:]])


_BARE = {_PNG: _png, _JPEG: _jpeg, **dict.fromkeys(_TIFF, _tiff)}

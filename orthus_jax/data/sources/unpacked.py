"""Compressed tar files, which can't be read at random: each is unpacked once, into the cache directory."""

from __future__ import annotations

import bz2
from collections.abc import Callable, Iterable, Iterator
import contextlib
import gzip
import hashlib
import lzma
from pathlib import Path
import shutil
import tarfile
from typing import Any, BinaryIO
import zlib

from orthus_jax.data.sources.remarks import printable
from orthus_jax.errors import BadRequest
from orthus_jax.files import cache_dir, first_line, staged
from orthus_jax.progress import bar

_TAR, _FAULT = "plain.tar", "fault.txt"
_CHUNK = 1 << 16  # what is read at once of a damaged file is lost at once
_WORTH_A_BAR = 1 << 28  # bytes
_BEGINS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"]\0\0": "lzma", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress",
}  # fmt: skip


def _by_pyarrow(codec: str) -> Callable[[BinaryIO], Any]:
  def opens(f: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(f, "r"), codec)

  return opens


_OPEN: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda f: gzip.GzipFile(fileobj=f), "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile, "lzma": lzma.LZMAFile,
    "zstd": _by_pyarrow("zstd"), "lz4": _by_pyarrow("lz4"),
}  # fmt: skip


class _Lost(Exception):
  """The file system fails to give what is to be unpacked."""


def compression(file: Path) -> str:
  """What a file is compressed with, by its first bytes; empty for a plain tar file, whose first bytes are any name.

  Raises:
    OSError: the file system fails.
  """
  with file.open("rb") as f:
    head = f.read(512)
  how = next((how for begin, how in _BEGINS.items() if head.startswith(begin)), "")
  if not how:
    return ""
  try:
    tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
  except (tarfile.HeaderError, IndexError):
    return how
  return ""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tuple[Any, BinaryIO]]:
  """What a compressed file holds, to be read from front to end; and the file itself, which tells how far one is.

  Raises:
    BadRequest: it can't be unpacked.
    OSError: the file system fails.
  """
  how = compression(file)
  if how not in _OPEN:
    raise _refusal(file, "")
  with file.open("rb") as raw:
    try:
      packed = _OPEN[how](raw)
    except ImportError as e:
      raise _refusal(file, f", which takes pyarrow ({e})") from e
    with packed:
      yield packed, raw


def check_space(files: Iterable[Path]) -> None:
  """Raises BadRequest if the cache's disk has less room than even compressed files take that aren't unpacked yet."""
  needed = sum(f.stat().st_size for f in files if not (_place(f) / _TAR).is_file())
  there = next(p for p in (cache_dir(), *cache_dir().absolute().parents) if p.is_dir())
  if needed > (free := shutil.disk_usage(there).free):
    raise BadRequest(
        f"compressed tar files are unpacked into {cache_dir()}, where {free / 1e9:.1f} GB are free and more than"
        f" {needed / 1e9:.1f} GB are needed: set ORTHUS_CACHE to a larger disk, or unpack them into plain tar files"
    )


def unpacked(file: Path) -> tuple[Path, str]:
  """A plain tar file of what a compressed one holds, and what kept the rest of it from being unpacked, or nothing.

  It is made unless it is there from an earlier time, for a file of this path, size and time of change.

  Raises:
    BadRequest: nothing of it can be unpacked, or the cache can't be written.
    OSError: the file system fails to give it.
  """
  place = _place(file)
  if not (place / _TAR).is_file():
    shutil.rmtree(place, ignore_errors=True)
    try:
      with opened(file) as (packed, raw), staged(place) as folder:
        fault = _unpack(file, packed, raw, folder / _TAR)
        (folder / _FAULT).write_text(fault)
    except _Lost as e:
      raise e.args[0] from e
    except BadRequest:
      if not (place / _TAR).is_file():  # else another process has made it meanwhile
        raise
  return place / _TAR, (place / _FAULT).read_text()


def _place(file: Path) -> Path:
  stat = file.stat()
  key = hashlib.sha256(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode(errors="surrogateescape"))
  return cache_dir() / "unpacked" / f"{printable(file.name)[:64].replace('/', '_')}-{key.hexdigest()[:16]}"


def _unpack(file: Path, packed: Any, raw: BinaryIO, target: Path) -> str:
  """Writes what can be unpacked; what kept the rest from it."""
  total, done = file.stat().st_size, 0
  progress = bar(f"unpacking {printable(file.name)}, MB") if total >= _WORTH_A_BAR else None
  with target.open("wb") as f:
    while True:
      try:
        data = packed.read1(_CHUNK) if hasattr(packed, "read1") else packed.read(_CHUNK)
      except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        if getattr(e, "errno", None) is not None:
          raise _Lost(e) from e
        if not done:
          raise _refusal(file, f": {first_line(e)}") from e
        return f"what was compressed can't be unpacked from there on: {first_line(e)}"
      if progress:
        progress(raw.tell() >> 20 if data else total >> 20, total >> 20)
      if not data:
        return ""
      done += f.write(data)


def _refusal(file: Path, why: str) -> BadRequest:
  how = compression(file)
  return BadRequest(f"{file} is compressed ({how}) and can't be unpacked here{why}: unpack it into a plain tar file")

"""Image-text pairs from uncompressed tar files, as WebDataset lays them out; `tar_samples` says what makes a sample."""

from __future__ import annotations

import functools
import operator
import os
from pathlib import Path, PurePosixPath
import re

from orthus_jax.config import PixelsConfig
from orthus_jax.data.documents import Document
from orthus_jax.data.images import fit, load_image
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members, tar_samples
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.folder import Pairs, pair
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.data.sources.tar_samples import Sample
from orthus_jax.errors import BadRequest

_MAX_PICTURE = 1 << 28  # bytes
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


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
    self._samples: list[Sample] = []
    for number, file in enumerate(self.files):
      try:
        found = retry(str(file), functools.partial(tar_members.scan, file))
      except OSError as e:
        broken.append((file, "all of it", f"the file can't be reached: {e.strerror}"))
        continue
      for kind, name in found.remarks:
        self.remarks.add(kind, f"{self._name(file)}/{name}")
      samples = list(tar_samples.samples(number, self._name(file), found.members, self.remarks))
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

  def _document(self, sample: Sample, *, to_text: bool) -> Document:
    if sample.fault:
      raise BadRequest(sample.fault)
    assert sample.picture is not None  # it would be a fault
    file = self.files[sample.file]
    if sample.picture.size > _MAX_PICTURE:
      raise BadRequest(f"its picture has {sample.picture.size:,} bytes, more than the {_MAX_PICTURE:,} allowed")
    text = tar_samples.text(file, sample.texts)
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
      elif match := _PACKED.search(name):
        if f"{name[: match.start()]}.tar" in names:
          remarks.add("compressed files passed over beside what they were unpacked to", inside)
        else:
          packed.append(file)
      elif file.suffix.lower() == ".tar":
        files.append(file)
      else:
        remarks.add(f"{printable(file.suffix.lower()) or 'other'} files passed over, which are no tar files", inside)
    folders[:] = [f for f in folders if not f.startswith(".")]
  if packed:
    raise tar_members.compressed(min(packed), f"so are {len(packed) - 1} more" if len(packed) > 1 else "by its name")
  if not files:
    raise BadRequest(f"there is no tar file at {str(path)!r}; give one, or a folder that holds some")
  return sorted(files)

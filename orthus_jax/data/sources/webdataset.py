"""Image-text pairs from uncompressed tar files, as WebDataset lays them out; `tar_samples` says what makes a sample."""

from __future__ import annotations

import functools
import os
from pathlib import Path, PurePosixPath
import re

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members, tar_samples
from orthus_jax.data.sources.layout import Draft, Layout, Options, pair, pair_count
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.data.sources.tar_samples import Sample
from orthus_jax.errors import BadRequest

_MAX_PICTURE = 1 << 28  # bytes
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class WebDataset(Layout):
  """Samples of a picture and a text, which make drafts as `layout.pair` does.

  A stretch of a file that can't be read as tar counts as one bad record.
  """

  name = "webdataset"
  usage = """Tar files of samples, as WebDataset and img2dataset write them: members of one name, one after the other.

    DIR/00000.tar        at any depth; or one tar file
      000000000.jpg      or .png, .webp, … : the first kind that is there
      000000000.txt      its caption; or .caption, or "caption" or "text" of .json
"""
  takes = frozenset({"pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    self.files = _find(self.path, self.remarks, self.broken)
    self._samples: list[Sample] = []
    for number, file in enumerate(self.files):
      try:
        found = retry(str(file), functools.partial(tar_members.scan, file))
      except OSError as e:
        self.broken.append((str(file), "all of it", f"the file can't be reached: {e.strerror}"))
        continue
      for kind, name in found.remarks:
        self.remarks.add(kind, f"{self._name(file)}/{name}")
      samples = list(tar_samples.samples(number, self._name(file), found.members, self.remarks))
      if not samples and not found.faults:
        self.remarks.add("tar files without a sample", self._name(file))
      self._samples += samples
      self.broken += [(str(file), where, reason) for where, reason in found.faults]
    if not self._samples and not self.broken:
      others = f"; it holds {'; '.join(self.remarks.lines())}" if self.remarks.counts else ""
      raise BadRequest(f"{str(self.path)!r} holds no sample: files such as a.jpg and a.txt, one after the other{others}")

  @classmethod
  def recognise(cls, path: Path) -> str:
    if path.is_file():
      return "a tar file" if path.suffix.lower() == ".tar" else ""
    n = sum(p.suffix.lower() == ".tar" for p in path.iterdir())
    return f"{n} tar files" if n else ""

  def __len__(self) -> int:
    return len(self._samples)

  @property
  def drafts_per_row(self) -> int:
    return pair_count(self.options.pairs)

  def place(self, row: int) -> tuple[str, str]:
    sample = self._samples[row]
    return str(self.files[sample.file]), sample.name

  def drafts(self, row: int) -> tuple[Draft, ...]:
    sample = self._samples[row]
    if sample.fault:
      raise BadRequest(sample.fault)
    assert sample.picture is not None  # it would be a fault
    file = self.files[sample.file]
    if sample.picture.size > _MAX_PICTURE:
      raise BadRequest(f"its picture has {sample.picture.size:,} bytes, more than the {_MAX_PICTURE:,} allowed")
    text = tar_samples.text(file, sample.texts)
    shown = retry(str(file), functools.partial(tar_members.read, file, sample.picture))
    return pair(text, shown, self.options.pairs, name=printable(f"{self._name(file)}/{sample.name}"))

  def _name(self, file: Path) -> str:
    return (file.relative_to(self.path) if file != self.path else PurePosixPath(file.name)).as_posix()


def _find(path: Path, remarks: Remarks, broken: list[tuple[str, str, str]]) -> list[Path]:
  """The tar files at a place, in order.

  Raises:
    BadRequest: there is none, or one that is compressed.
  """
  if path.is_file():
    return [path]
  files, packed, been = [], [], set()

  def fail(e: OSError) -> None:
    broken.append((str(e.filename), "all of it", f"the folder can't be read: {e.strerror}"))

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

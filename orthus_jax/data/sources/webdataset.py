"""Image-text pairs from uncompressed tar files, as WebDataset lays them out; `tar_samples` says what makes a sample."""

from __future__ import annotations

import collections
import functools
import os
from pathlib import Path, PurePosixPath
import re

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members, tar_samples, tar_texts
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.data.sources.tar_samples import Sample
from orthus_jax.data.sources.tar_texts import text_parts
from orthus_jax.errors import BadRequest

_MAX_PICTURE = 1 << 28  # bytes
_LOOKED_AT = 64  # samples whose JSON tells whether a field is there
_SHOWN = 12  # parts that are told of
_MAX_PARTS = 1000  # that are counted; names with dots in them make as many as there are samples
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class WebDataset(Layout):
  """Samples of a picture and a text, which make drafts as `layout.pair` does.

  A stretch of a file that can't be read as tar counts as one bad record.
  """

  name = "webdataset"
  usage = """Tar files of samples, as WebDataset and img2dataset write them: members of one name, one after the other.

    DIR/00000.tar        at any depth; or one tar file
      000000000.jpg      or .png, .webp, … : the first kind that is there
      000000000.txt      its caption; or .caption, or "caption" or "text" of .json   (text: txt, json.FIELD, long.txt, …)
    or edits, from one picture to another:
      000000000.input.jpg, 000000000.output.jpg
      000000000.txt      the instruction; or .instruction.txt, .edit.txt
"""
  takes = frozenset({"pairs", "text"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    wanted = text_parts(options.text, tar_samples.PICTURES)
    self.files = _find(self.path, self.remarks, self.broken)
    self._samples: list[Sample] = []
    self._parts: collections.Counter[str] = collections.Counter()  # what stands behind samples' names
    for number, file in enumerate(self.files):
      try:
        found = retry(str(file), functools.partial(tar_members.scan, file))
      except OSError as e:
        self.broken.append((str(file), "all of it", f"the file can't be reached: {e.strerror}"))
        continue
      for kind, name in found.remarks:
        self.remarks.add(kind, f"{self._name(file)}/{name}")
      parts = (PurePosixPath(m.name).name.partition(".")[2].lower() for m in found.members)
      self._parts.update(p for p in parts if p in self._parts or len(self._parts) < _MAX_PARTS)
      samples = list(tar_samples.samples(number, self._name(file), found.members, self.remarks, wanted))
      if not samples and not found.faults:
        self.remarks.add("tar files without a sample", self._name(file))
      self._samples += samples
      self.broken += [(str(file), where, reason) for where, reason in found.faults]
    if not self._samples and not self.broken:
      others = f"; it holds {'; '.join(self.remarks.lines())}" if self.remarks.counts else ""
      raise BadRequest(f"{str(self.path)!r} holds no sample: files such as a.jpg and a.txt, one after the other{others}")
    if options.text:
      self._check_texts()
    both = pair_count(options.pairs)
    self._drafts = np.array([1 if len(s.pictures) == 2 else both for s in self._samples], np.int8)

  @classmethod
  def recognise(cls, path: Path) -> str:
    if path.is_file():
      return "a tar file" if path.suffix.lower() == ".tar" else ""
    n = sum(p.suffix.lower() == ".tar" for p in path.iterdir())
    return f"{n} tar files" if n else ""

  def __len__(self) -> int:
    return len(self._samples)

  @property
  def drafts_per_row(self) -> np.ndarray:
    return self._drafts

  def fields(self) -> dict[str, str]:
    """The parts of samples, and how many have each."""
    return {part or "(no extension)": f"{n:,} files" for part, n in self._parts.most_common(_SHOWN)}

  def place(self, row: int) -> tuple[str, str]:
    sample = self._samples[row]
    return str(self.files[sample.file]), sample.name

  def drafts(self, row: int) -> tuple[Draft, ...]:
    sample = self._samples[row]
    if sample.fault:
      raise BadRequest(sample.fault)
    file = self.files[sample.file]
    if (largest := max(p.size for p in sample.pictures)) > _MAX_PICTURE:
      raise BadRequest(f"its picture has {largest:,} bytes, more than the {_MAX_PICTURE:,} allowed")
    text = tar_texts.text(file, sample.texts)
    name = printable(f"{self._name(file)}/{sample.name}")
    shown = [retry(str(file), functools.partial(tar_members.read, file, picture)) for picture in sample.pictures]
    if len(shown) == 1:
      return pair(text, shown[0], self.options.pairs, name=name)
    before, after = shown
    return (Draft((Picture(before), Text(text), Picture(after, learn=True)), f"{name}:edit", "edit"),)

  def _check_texts(self) -> None:
    """Raises BadRequest if no sample has a text that the user asked for; as for fields of JSON, none of some."""
    asked = ", ".join(self.options.text)
    if not any(s.texts for s in self._samples):
      there = ", ".join(part for part, _ in self._parts.most_common(_SHOWN))
      raise BadRequest(f"no sample in {str(self.path)!r} has {asked} (data.text); there are {there}")
    good = [s for s in self._samples if not s.fault]
    missing: tar_texts.NoField | None = None
    for sample in good[:: -(-len(good) // _LOOKED_AT)]:
      try:
        tar_texts.text(self.files[sample.file], sample.texts)
      except tar_texts.NoField as e:
        missing = e
      except (BadRequest, OSError):
        return
      else:
        return
    if missing:
      raise BadRequest(f"no sample looked at in {str(self.path)!r} has {asked} (data.text): {missing}")

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

"""Image-text pairs and edits from tar files, as WebDataset lays them out; `tar_samples` says what makes a sample."""

from __future__ import annotations

import array
import collections
from collections.abc import Iterator
import contextlib
import functools
import itertools
from pathlib import Path, PurePosixPath
import tarfile

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_files, tar_members, tar_samples, tar_texts, unpacked
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, digest, pair, pair_count
from orthus_jax.data.sources.remarks import printable
from orthus_jax.data.sources.tar_texts import text_parts
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar
from orthus_jax.storage import bring

_MAX_PICTURE = 1 << 28  # bytes
_LOOKED_AT = 64  # samples that tell whether a field is there, or members whether these are samples
_SHOWN = 12  # parts that are told of
_WORTH_A_BAR = 32  # files
_MAX_PARTS = 1000  # that are counted; names with dots in them make as many as there are samples


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
    self.files = tar_files.find(self.path, self.remarks, self.broken)
    self._samples = tar_samples.Samples(wanted or (*tar_texts.CAPTIONS, *tar_texts.INSTRUCTIONS))
    drafts, pairs = array.array("b"), pair_count(options.pairs)
    has_text = False
    self._parts: collections.Counter[str] = collections.Counter()  # what stands behind samples' names
    self._plain = list(self.files)  # where their bytes lie
    packed = {file for file in self.files if _is_packed(file)}
    unpacked.check_space(packed)
    progress = bar("reading tar files") if len(self.files) >= _WORTH_A_BAR else None
    for number, file in enumerate(self.files):
      if progress:
        progress(number + 1, len(self.files))
      try:
        found = self._scan(number, file in packed)
      except OSError as e:
        self.broken.append((str(file), "all of it", f"the file can't be reached: {e.strerror}"))
        continue
      for kind, name in found.remarks:
        self.remarks.add(kind, f"{self._name(file)}/{name}")
      parts = (m.name.rpartition("/")[2].partition(".")[2].lower() for m in found.members)
      self._parts.update(p for p in parts if p in self._parts or len(self._parts) < _MAX_PARTS)
      before = len(self._samples)
      for sample in tar_samples.samples(number, self._name(file), found.members, self.remarks, wanted):
        self._samples.append(sample)
        drafts.append(1 if len(sample.pictures) == 2 else pairs)
        has_text |= bool(sample.texts)
      if len(self._samples) == before and not found.faults:
        self.remarks.add("tar files without a sample", self._name(file))
      self.broken += [(str(file), where, reason) for where, reason in found.faults]
    if not self._samples and not self.broken:
      others = f"; it holds {'; '.join(self.remarks.lines())}" if self.remarks.counts else ""
      raise BadRequest(f"{str(self.path)!r} holds no sample: files such as a.jpg and a.txt, one after the other{others}")
    if options.text:
      self._check_texts(has_text)
    self._drafts = np.array(drafts, np.int8)

  @classmethod
  def recognise(cls, path: Path) -> str:
    for file in [path] if path.is_file() else itertools.islice(_some(path, 2), 4):  # one may be damaged
      extensions = {name.rpartition(".")[2].lower() for name in _first_names(file)}
      texts = extensions & {"txt", "caption", "json"}
      if texts and extensions.intersection(tar_samples.PICTURES):
        return f"{file.name} holds pictures beside .{' and .'.join(sorted(texts))}"
    return ""

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

  def fingerprint(self) -> str:
    stamps = []
    for file in self.files:
      with contextlib.suppress(OSError):
        stamps.append((self._name(file), *bring.stamp(file)))
    return digest(stamps)

  def drafts(self, row: int) -> tuple[Draft, ...]:
    sample = self._samples[row]
    if sample.fault:
      raise BadRequest(sample.fault)
    file, plain = self.files[sample.file], self._plain[sample.file]
    if (largest := max(p.size for p in sample.pictures)) > _MAX_PICTURE:
      raise BadRequest(f"its picture has {largest:,} bytes, more than the {_MAX_PICTURE:,} allowed")
    text = tar_texts.text(plain, sample.texts)
    name = printable(f"{self._name(file)}/{sample.name}")
    shown = [retry(str(file), functools.partial(tar_members.read, plain, picture)) for picture in sample.pictures]
    if len(shown) == 1:
      return pair(text, shown[0], self.options.pairs, name=name)
    before, after = shown
    return (Draft((Picture(before), Text(text), Picture(after, learn=True)), f"{name}:edit", "edit"),)

  def _scan(self, number: int, packed: bool) -> tar_members.Scan:
    """What a file holds; one that is compressed is unpacked first."""
    file, fault = self.files[number], ""
    if packed:
      plain, fault = retry(str(file), functools.partial(unpacked.unpacked, file))
      self._plain[number] = plain
      self.remarks.add("compressed tar files read from where they were unpacked to", f"{self._name(file)}: {plain}")
    found = retry(str(file), functools.partial(tar_members.scan, self._plain[number]))
    if fault and not any(reason == tar_members.CUT for _, reason in found.faults):
      found.faults.append((f"behind byte {self._plain[number].stat().st_size:,} of what it holds", fault))
    return found

  def _check_texts(self, has_text: bool) -> None:
    """Raises BadRequest if no sample has a text that the user asked for; as for fields of JSON, none of some."""
    asked = ", ".join(self.options.text)
    if not has_text:
      there = ", ".join(part for part, _ in self._parts.most_common(_SHOWN))
      raise BadRequest(f"no sample in {str(self.path)!r} has {asked} (data.text); there are {there}")
    missing: tar_texts.NoField | None = None
    for row in range(0, len(self._samples), -(-len(self._samples) // _LOOKED_AT)):
      sample = self._samples[row]
      if not sample.texts:
        continue
      try:
        tar_texts.text(self._plain[sample.file], sample.texts)
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


def _is_packed(file: Path) -> bool:
  try:
    return bool(unpacked.compression(file))
  except OSError:
    return False  # it is told of where it is read


def _some(folder: Path, deeper: int) -> Iterator[Path]:
  """Tar files in a folder and those in it, not far down."""
  inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
  yield from (p for p in inside if tar_files.stem(p.name) and p.is_file())
  if deeper:
    for p in inside:
      if p.is_dir():
        yield from _some(p, deeper - 1)


def _first_names(file: Path) -> list[str]:
  """Names of the first members; none where it is no tar file by its name."""
  if not tar_files.stem(file.name):
    return []
  with contextlib.ExitStack() as stack:
    packed = unpacked.compression(file)
    f = stack.enter_context(unpacked.opened(file))[0] if packed else stack.enter_context(file.open("rb"))
    try:
      with tarfile.open(fileobj=f, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
        return [member.name for member in itertools.islice(tar, _LOOKED_AT)]
    except (tarfile.TarError, OSError, EOFError, ValueError):
      return []

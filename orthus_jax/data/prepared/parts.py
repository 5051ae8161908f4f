"""Laid documents written in parts, each complete on its own, so that a command that was killed goes on behind the last one.

What a part holds depends on its rows and on the parts before it, never on when a command stopped: a resumed folder has the
same bytes. While it is unfinished a folder has

    DIR/unfinished.json       what is prepared, and the parts that are complete, with their files' bytes; written first, so
                              that it marks the rest
    DIR/parts/00000.npz       sizes, kinds and pictures' keys of a part
    DIR/parts/00000.json      what it rejected, and which benchmarks' prompts it holds
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
import shutil
from typing import Any

from array_record.python import array_record_module
import numpy as np

from orthus_jax.data.prepared.format import BF16, MAX_VARIANTS, to_record
from orthus_jax.data.prepared.laying import Chunk, Laid
from orthus_jax.data.prepared.picture_numbers import PictureNumbers
from orthus_jax.data.prepared.unfinished import PARTS, UNFINISHED, Sizes, is_half, note, on_disk, resume, sync, writing
from orthus_jax.data.sources.bad_records import reasons
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest
from orthus_jax.files import write_text

PART_BYTES = 1 << 28
_ENCODED_AT_ONCE = 32
# A group of one and no compression: any record is read alone, as fast as the disk.
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass
class Totals:
  """Of all complete parts.

  Attributes:
    rows: how many rows are done.
    documents, pictures: records of each part's file.
    rejected: how many bad records there are for each reason.
    held: how many documents hold each of the benchmarks' prompts.
    passed: what the source left out of its rows by its rules.
    files: SHA-256 of each file.
    digests: of what each part holds.
    read: documents read, good or bad.
  """

  rows: int = 0
  documents: list[int] = dataclasses.field(default_factory=list)
  pictures: list[int] = dataclasses.field(default_factory=list)
  rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  held: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  passed: Remarks = dataclasses.field(default_factory=Remarks)
  files: dict[str, str] = dataclasses.field(default_factory=dict)
  digests: list[str] = dataclasses.field(default_factory=list)
  read: int = 0


class Parts:
  """Writes chunks of laid documents into a folder, and goes on where it was left.

  Attributes:
    folder: where they lie.
    totals: of the complete parts.
  """

  def __init__(
      self,
      folder: Path,
      request: dict[str, Any],
      *,
      encode: Callable[[np.ndarray], np.ndarray] | None = None,
      resolution: int,
      part_bytes: int = PART_BYTES,
      called: str = "",
      completed: Callable[[], None] = lambda: None,
      sizes: Sizes | None = None,
  ):
    """Opens the folder.

    Args:
      folder: is there; empty, or holds what a command like this one left.
      request: what all depends on; must be the same to go on.
      encode: where pictures are kept as features: uint8 [n, R, R, 3] → [n, P, C].
      resolution: R.
      part_bytes: a part ends behind the chunk with which its files reach so much.
      called: what messages call the folder; its path by default.
      completed: called once a part's files lie there.
      sizes: of the files that complete parts have; by default those on disk.

    Raises:
      BadRequest: another request's parts lie there.
    """
    self.folder, self._request, self._encode, self._R, self._part_bytes = folder, request, encode, resolution, part_bytes
    self._called, self._completed = called or str(folder), completed
    self._numbers = PictureNumbers()
    self.totals = Totals()
    self._resume(sizes or on_disk(folder))
    if not self.totals.rows:  # nothing is complete that could be of another request
      write_text(folder / UNFINISHED, json.dumps({"request": request, "parts": []}, indent=1))
    (folder / PARTS).mkdir(exist_ok=True)
    self._begin()

  def _resume(self, sizes: Sizes) -> None:
    with writing(self.folder):
      for part in resume(self.folder, self._request, called=self._called, sizes=sizes):
        self._count(part.told, part.rejected, part.held, part.passed)
        for key in part.keys:
          self._numbers.add(key.tobytes())
      kept = {p.name for p in self.folder.iterdir() if p.suffix != ".array_record"} | set(self.totals.files)
      for stray in self.folder.iterdir():
        if stray.name not in kept or is_half(stray):
          stray.unlink()  # of the part that a killed command was at

  def _count(
      self, part: Mapping[str, Any], rejected: Sequence[tuple[str, str, str]], held: Mapping[str, int], passed: Remarks
  ) -> None:
    """Adds a part to the totals."""
    totals = self.totals
    totals.rows, totals.read = part["rows"], totals.read + part["read"]
    totals.files |= part["files"]
    totals.digests.append(part["digest"])
    totals.rejected.update(reasons(rejected))
    totals.held.update(held)
    totals.passed = Remarks.sum([totals.passed, passed])
    totals.documents.append(part["documents"])
    totals.pictures.append(part["pictures"])

  def rejected(self) -> Iterator[tuple[str, str, str]]:
    """(file, record, reason) of all bad records of the complete parts: read from them, as there may be millions."""
    for number in range(len(self.totals.documents)):
      for source, record, reason in json.loads(self._part("json", number).read_text(encoding="utf-8"))["rejected"]:
        yield str(source), str(record), str(reason)

  def _part(self, suffix: str, number: int | None = None) -> Path:
    """A file of a part; of the one at hand, unless another is named."""
    return self.folder / note(len(self.totals.documents) if number is None else number, suffix)

  def _begin(self) -> None:
    self._chunk_rows = self.totals.rows
    self._writers: dict[str, Any] = {}
    self._counts = {"documents": 0, "pictures": 0}
    self._bytes, self._read = 0, 0
    self._waiting: list[bytes] = []
    self._keys: list[bytes] = []
    self._sizes: list[np.ndarray] = []
    self._learnt: list[int] = []
    self._kinds: list[str] = []
    self._rejected: list[tuple[str, str, str]] = []
    self._held: collections.Counter[str] = collections.Counter()
    self._passed = Remarks()
    self._digest = hashlib.sha256()

  def add(self, chunk: Chunk) -> None:
    """Writes the rows that follow those that are there."""
    assert chunk.rows[0] == self._chunk_rows
    for laid in chunk.documents:
      self._add(laid, chunk.pictures)
    self._rejected += chunk.rejected
    self._passed = Remarks.sum([self._passed, chunk.passed])
    self._read += chunk.read
    self._chunk_rows = chunk.rows[1]
    if self._bytes >= self._part_bytes:
      self.close()

  def _add(self, laid: Laid, pictures: dict[bytes, bytes]) -> None:
    size_V3 = np.zeros((MAX_VARIANTS, 3), np.int32)
    size_V3[: len(laid.sequences)] = [s.size for s in laid.sequences]
    self._sizes.append(size_V3)
    self._learnt.append(int(laid.sequences[0].learn_T.sum()))
    self._kinds.append(laid.kind)
    self._held.update(laid.held)
    numbers = [[self._number(key, pictures) for key in keys] for keys in laid.pictures]
    record = to_record(laid.name, laid.sequences, numbers)
    self._digest.update(record)
    self._write("documents", record)

  def _number(self, key: bytes, pictures: dict[bytes, bytes]) -> int:
    number = self._numbers.get(key)
    if number is None:
      number = self._numbers.add(key)
      self._keys.append(key)
      self._digest.update(key)
      if self._encode is None:
        self._write("pictures", pictures[key])
      else:
        self._waiting.append(pictures[key])
        if len(self._waiting) == _ENCODED_AT_ONCE:
          self._write_features()
    return number

  def _write_features(self) -> None:
    if self._waiting:
      assert self._encode is not None
      padded = np.zeros((_ENCODED_AT_ONCE, self._R, self._R, 3), np.uint8)
      for row, pixels in zip(padded, self._waiting):
        row[:] = np.frombuffer(pixels, np.uint8).reshape(row.shape)
      for feature in np.asarray(self._encode(padded))[: len(self._waiting)]:
        self._write("pictures", feature.astype(BF16).tobytes())
      self._waiting.clear()

  def _write(self, what: str, record: bytes) -> None:
    with writing(self.folder):
      if what not in self._writers:
        path = self.folder / f"{what}-{len(self.totals.documents):05d}.array_record"
        self._writers[what] = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
      self._writers[what].write(record)
    self._counts[what] += 1
    self._bytes += len(record)

  def close(self) -> None:
    """Ends the part that is being written, if there is anything in it."""
    if self._chunk_rows == self.totals.rows:
      return
    self._write_features()
    with writing(self.folder):
      self._complete()

  def _complete(self) -> None:
    files: dict[str, str] = {}
    for what, writer in self._writers.items():
      writer.close()
      name = f"{what}-{len(self.totals.documents):05d}.array_record"
      with (self.folder / name).open("rb") as f:
        files[name] = hashlib.file_digest(f, "sha256").hexdigest()
    np.savez(
        self._part("npz"), sizes_DV3=np.array(self._sizes, np.int32).reshape(-1, MAX_VARIANTS, 3),
        learnt_text_D=np.array(self._learnt, np.int32), kinds=np.array(self._kinds, str),
        keys=np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 16),
    )  # fmt: skip
    noted = {"rejected": self._rejected, "held": self._held, "passed": self._passed.to_json()}
    write_text(self._part("json"), json.dumps(noted))
    made = [self.folder / name for name in files] + [self._part("npz"), self._part("json")]
    sync(*made, self.folder / PARTS, self.folder)  # or a machine that loses its power may have the part's name and not the part
    sizes = {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in made}
    part: dict[str, Any] = {"rows": self._chunk_rows, "read": self._read, "files": files, "sizes": sizes, **self._counts}
    part["digest"] = self._digest.hexdigest()
    file = self.folder / UNFINISHED
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    write_text(file, json.dumps({"request": self._request, "parts": [*parts, part]}, indent=1))
    self._completed()
    self._count(part, self._rejected, self._held, self._passed)
    self._begin()

  def abandon(self) -> None:
    """Closes the files of the part that is being written; what is complete stays."""
    for writer in self._writers.values():
      with contextlib.suppress(RuntimeError):  # that the disk is full, say, which ended it
        writer.close()

  def finish(self, broken: Sequence[tuple[str, str, str]] = ()) -> list[str]:
    """Writes the index of all documents, and what was rejected; returns the kinds that the index numbers.

    Args:
      broken: (file, where, reason) of what of the source's files can't be read at all.

    Raises:
      BadRequest: no document is good.
    """
    self.close()
    with writing(self.folder):
      return self._index(broken)

  def _index(self, broken: Sequence[tuple[str, str, str]]) -> list[str]:
    kinds: dict[str, int] = {}
    sizes, learnt, kind = [], [], []
    for part in range(len(self.totals.documents)):
      with np.load(self._part("npz", part)) as index:
        sizes.append(index["sizes_DV3"])
        learnt.append(index["learnt_text_D"])
        kind.append(np.array([kinds.setdefault(k, len(kinds)) for k in index["kinds"].tolist()], np.int16))
    if not sum(self.totals.documents):
      raise BadRequest(f"none of the {self.totals.read} documents is good: there is nothing to prepare")
    index = dict(sizes_DV3=np.concatenate(sizes), kind_D=np.concatenate(kind), learnt_text_D=np.concatenate(learnt))
    np.savez(self.folder / "index.npz", **index)
    with (self.folder / "rejected.jsonl").open("w", encoding="utf-8") as f:
      for source, record, reason in itertools.chain(broken, self.rejected()):
        f.write(json.dumps({"file": source, "record": record, "reason": reason}) + "\n")
    sync(self.folder / "index.npz", self.folder / "rejected.jsonl")
    return list(kinds)

  def tidy(self) -> None:
    """Removes what only an unfinished folder needs."""
    (self.folder / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(self.folder / PARTS, ignore_errors=True)


def digest(totals: Totals) -> str:
  """Of all that the parts hold."""
  return hashlib.sha256("".join(totals.digests).encode()).hexdigest()

"""Packed batches from prepared data, as a function of the step, in memory that doesn't grow with the data.

Each source's documents are packed into rows once, from their sizes alone, and the plan is kept beside the data. Row i of
the endless stream of rows is drawn from one of the sources in fixed proportions, and from a fresh order of its rows each
time it has been gone through; both are closed forms of i (grain's `mix` and `shuffle`).
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from pathlib import Path
import socket
from typing import Any

import grain
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import packing
from orthus_jax.data.batch import Batch, FeatureTable, empty_batch, fill_row
from orthus_jax.data.learnt import IdleSteps, batch_learns, check_learnt, learns
from orthus_jax.data.pipeline import prefetch
from orthus_jax.data.prepared import format as record_format, rounds as rounds_lib
from orthus_jax.data.prepared.shards import Shards
from orthus_jax.data.sequence import Sequence, Tokenizer, with_patches
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line
from orthus_jax.storage import bring

_log = logging.getLogger(__name__)


class _Folder:
  """One prepared folder, packed into rows."""

  def __init__(self, path: Path, config: Config, tokenizer: Tokenizer, *, keep_plan: bool):
    self.path, self._config = path, config
    self.facts = record_format.read_facts(path)
    wanted = record_format.facts(config, tokenizer)
    if not config.data.caption_dropout:
      del wanted["unconditional_prompt"]
    record_format.check(path, self.facts, wanted)
    self._P, P = config.model.vision_tokenizer.patches, self.facts["patches"]  # of the model, and as it was prepared
    try:
      with np.load(path / "index.npz") as index:
        self._sizes_DV3, self._kind_D = index["sizes_DV3"], index["kind_D"]
        # An earlier version didn't write how many text positions are to be learnt: some, it is taken to be.
        text_D = index["learnt_text_D"] if "learnt_text_D" in index else np.ones(len(self._kind_D), np.int32)
    except Exception as e:  # zipfile, zlib and numpy each have their own
      raise BadRequest(f"{path / 'index.npz'} is damaged or missing: bring it back, or prepare {path} anew") from e
    self._sizes_DV3[..., 0] += self._sizes_DV3[..., 1] * (self._P - P)
    here, R = self.facts["resolution"], config.model.vision_tokenizer.resolution
    if here != R:
      _log.info("%s has pictures of %d pixels: they are fitted to the model's %d when read", path, here, R)
    self.bad = BadRecords(max_share=config.data.max_bad_share, total=self.facts["documents"])
    self._variants_D = (self._sizes_DV3[:, :, 0] > 0).sum(axis=1)
    self.learns_D = learns(config, text_D, self._sizes_DV3[:, 0, 2])
    self._ends, self._documents, self.left_out, self.rounds = self._plan(keep_plan)
    self.drawn = np.unique(self._documents)
    wanted_D = self._weights_K()[self._kind_D] > 0
    wanted_D[self.left_out] = False
    self.undrawn = wanted_D.sum() - len(self.drawn)

  def __len__(self) -> int:
    """Rows."""
    return len(self._ends) - 1

  @functools.cached_property
  def documents(self) -> Shards:
    return Shards.of(self.path, self.facts, "documents", self.bad)

  @functools.cached_property
  def pictures(self) -> Shards:
    return Shards.of(self.path, self.facts, "pictures", self.bad)

  def read(self, number: int, variant: int) -> tuple[Sequence, list[np.ndarray]] | None:
    """A document's sequence and pictures; None where any of it can't be read, which is counted.

    Raises:
      BadRequest: if too much can't.
    """
    record = self.documents.read(number)
    if record is None:
      return None
    pictures = []
    try:
      stored = record_format.from_record(record, variant, patches=self.facts["patches"])
      for p in stored.pictures.tolist():
        picture = self.pictures.read(p)
        if picture is None:
          return None
        pictures.append(record_format.read_picture(picture, self._config, self.facts))
    except (ValueError, IndexError, OSError, SyntaxError) as e:  # a picture, or numbers, that aren't what they should be
      self.bad.report(str(self.path), f"document {number}", first_line(e))
      self.bad.check()
      return None
    return with_patches(stored.sequence, self.facts["patches"], self._P), pictures

  def digest(self) -> str:
    """Of what was prepared; of its sizes alone where an earlier version prepared it, which kept no digest of the rest."""
    names = ("tokenizer", "images", "encoded_by", "documents", "pictures", "kinds", "digest")
    digest = hashlib.sha256(json.dumps([self.facts.get(n) for n in names]).encode())
    digest.update(self._sizes_DV3.tobytes() + self._kind_D.tobytes())
    return digest.hexdigest()

  def row(self, number: int) -> np.ndarray:
    """The documents of a row."""
    return self._documents[self._ends[number] : self._ends[number + 1]]

  def variants(self, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which sequence each document of a row shows: 0, its own caption, but for the dropped share."""
    dropped = rng.random(len(row)) < self._config.data.caption_dropout
    which = rng.integers(0, 1 << 30, len(row))
    counts = self._variants_D[row]
    return np.where(dropped & (counts > 1), 1 + which % np.maximum(counts - 1, 1), 0)

  def positions(self, row: np.ndarray, variants: np.ndarray) -> int:
    return int(self._sizes_DV3[row, variants, 0].sum())

  def _weights_K(self) -> np.ndarray:
    """Of each kind, the largest 1."""
    kinds = dict(self._config.data.kinds)
    weight_K = np.asarray([kinds.get(k, 0.0 if kinds else 1.0) for k in self.facts["kinds"]])
    return weight_K / max(weight_K.max(), 1e-9)

  def _packed_from(self) -> str:
    """A digest of all of the data that a plan depends on: a folder may be prepared anew over the old one and its plans."""
    digest = hashlib.sha256(json.dumps(self.facts["kinds"]).encode())
    digest.update(np.ascontiguousarray(self._sizes_DV3))
    digest.update(np.ascontiguousarray(self._kind_D))
    return digest.hexdigest()

  def _plan(self, keep: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(where each row ends, documents of all rows, documents that fit none, where each round starts and the last ends).

    A document of the largest weight stands in each round, others in their share of them.
    """
    data = self._config.data
    strange = sorted({k for k, _ in data.kinds} - set(self.facts["kinds"]))
    if strange:
      raise BadRequest(f"data.kinds names {strange[0]!r}; {self.path} has {', '.join(self.facts['kinds'])}")
    capacity = packing.Capacity(data.sequence_length, data.images_per_row, data.learnt_images_per_row)
    weight_K = self._weights_K()
    many = rounds_lib.count(weight_K[weight_K > 0], documents=len(self._kind_D))
    key = [capacity.vector().tolist(), data.kinds, data.caption_dropout > 0, self._config.run.seed, self._packed_from()]
    if self._P != self.facts["patches"]:
      key.append(self._P)
    if many > 1:
      key.append({"rounds": many})
    file = self.path / "plans" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npz"
    try:
      with file.open("rb") as opened, np.load(opened) as plan:
        rounds = plan["rounds"] if many > 1 else np.asarray([0, len(plan["ends"]) - 1])
        return plan["ends"], plan["documents"], plan["left_out"], rounds
    except Exception:  # missing, or damaged in whichever way: numpy raises many kinds
      pass
    # Room for whichever caption is shown.
    size_D3 = self._sizes_DV3.max(axis=1) if data.caption_dropout > 0 else self._sizes_DV3[:, 0]
    fits_D = (size_D3 <= capacity.vector()).all(axis=1)
    orders = list(rounds_lib.orders(weight_K[self._kind_D] * fits_D, many, np.random.default_rng((self._config.run.seed, 0))))
    if not any(map(len, orders)):
      raise BadRequest(
          f"none of the {len(fits_D)} documents of {self.path} fits a row of {data.sequence_length} positions,"
          f" {data.images_per_row} images and {data.learnt_images_per_row} learnt images, and has a weight above 0"
      )
    packed = [packing.pack(size_D3, order, capacity) if len(order) else [] for order in orders]
    rounds = np.cumsum([0, *map(len, packed)])
    rows = [row for each in packed for row in each]
    ends = np.cumsum([0, *map(len, rows)])
    documents, left_out = np.concatenate(rows).astype(np.int32), np.flatnonzero(~fits_D)
    if keep:
      try:
        file.parent.mkdir(exist_ok=True)
        half = file.with_suffix(f".{socket.gethostname()}-{os.getpid()}.half.npz")  # another run may be at it, too
        np.savez(half, ends=ends, documents=documents, left_out=left_out, rounds=rounds)
        half.replace(file)
      except OSError as e:
        _log.warning("the plan of %s can't be kept (%s): it is made anew each time", self.path, e.strerror)
    return ends, documents, left_out, rounds


class PreparedPipeline:
  """Like `pipeline.Pipeline`, over folders that `orthus prepare` made.

  Args:
    tokenizer: the text tokenizer.
    config: the experiment; `data.path`, or `data.mixture` with shares of the rows.
    keep_plans: write plans beside the data.

  Raises:
    BadRequest: if a folder isn't there, or was made for another tokenizer or model.
  """

  def __init__(self, tokenizer: Tokenizer, config: Config, *, keep_plans: bool = True):
    self.config, self.tokenizer = config, tokenizer
    self.table = FeatureTable()  # nothing is kept
    data = config.data
    mixture = data.mixture or ((data.path, 1.0),)
    dropouts = data.mixture_caption_dropout or (data.caption_dropout,) * len(mixture)
    configs = [dataclasses.replace(config, data=dataclasses.replace(data, caption_dropout=d)) for d in dropouts]
    self._folders = [_Folder(Path(bring.local(p)), c, tokenizer, keep_plan=keep_plans) for (p, _), c in zip(mixture, configs)]
    names = [f.path.name for f in self._folders]
    self._names = [n if names.count(n) == 1 else f"{n}#{i}" for i, n in enumerate(names, 1)]
    kept = {f.facts["images"] for f in self._folders}
    if len({k == "features" for k in kept}) > 1:
      raise BadRequest("data.mixture mixes folders of features with folders of pixels: prepare all with the same --images")
    self.features = "features" in kept
    self.bad = 0  # told of when they are read
    self.too_long = [f"{f.path}#{d}" for f in self._folders for d in f.left_out]
    self.idle = [f"{f.path}#{d}" for f in self._folders for d in f.drawn[~f.learns_D[f.drawn]]]
    self.undrawn = int(sum(f.undrawn for f in self._folders))
    self._idle_steps = IdleSteps()
    check_learnt(np.concatenate([f.learns_D[f.drawn] for f in self._folders]))
    streams = []
    for f, folder in enumerate(self._folders):
      rounds = []
      for r, (begin, end) in enumerate(itertools.pairwise(folder.rounds.tolist())):
        if begin < end:
          rows = grain.MapDataset.range(begin, end).map(functools.partial(_pair, f))
          rounds.append(rows.seed(config.run.seed * 1009 + f + r * 1_000_003).shuffle())
      streams.append((rounds[0] if len(rounds) == 1 else grain.MapDataset.concatenate(rounds)).repeat())
    self._rows = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, [w for _, w in mixture])

  @property
  def encoded_by(self) -> set[str]:
    """Digests of the vision tokenizers that computed the features."""
    return {f.facts["encoded_by"] for f in self._folders} if self.features else set()

  def __len__(self) -> int:
    return sum(f.facts["documents"] for f in self._folders)

  def contents(self) -> dict[str, Any]:
    """What all batches are made of: how many documents, and a digest of them; not of where they lie."""
    digest = hashlib.sha256("".join(f.digest() for f in self._folders).encode())
    return {"documents": len(self), "digest": digest.hexdigest()}

  def _row(self, step: int, row: int) -> tuple[_Folder, np.ndarray, np.ndarray]:
    """Folder, documents and their variants of a row of a step's global batch."""
    index = step * self.config.run.batch_size + row
    f, number = self._rows[index]
    folder = self._folders[f]
    documents = folder.row(number)
    return folder, documents, folder.variants(documents, np.random.default_rng((self.config.run.seed, index, 1)))

  def tokens(self, step: int) -> int:
    """Positions of a step's global batch that hold something; from the plan alone."""
    return sum(f.positions(d, v) for f, d, v in (self._row(step, b) for b in range(self.config.run.batch_size)))

  def shares(self, step: int) -> dict[str, float]:
    """What each folder of a mixture gave of the positions of a step's batch, by its name; nothing of a single one."""
    if len(self._folders) == 1:
      return {}
    given = dict.fromkeys(self._names, 0)
    for b in range(self.config.run.batch_size):
      folder, documents, variants = self._row(step, b)
      given[self._names[self._folders.index(folder)]] += folder.positions(documents, variants)
    return {name: n / max(sum(given.values()), 1) for name, n in given.items()}

  def document_ids(self, step: int) -> list[str]:
    """The documents of a step's batch, row by row."""
    rows = [self._row(step, b) for b in range(self.config.run.batch_size)]
    names = []
    for folder, documents, _ in rows:
      for d in documents.tolist():
        record = folder.documents.read(d)
        names.append(record_format.from_record(record, 0, patches=0).name if record else f"{folder.path.name}#{d}")
    return names

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The global batch of a step, or some of its rows alone."""
    config, vision = self.config, self.config.model.vision_tokenizer
    P, R = vision.patches, vision.resolution
    all_rows = range(config.run.batch_size)
    rows = np.asarray(all_rows) if rows is None else rows
    shape, dtype = ((P, vision.latent_dim), record_format.BF16) if self.features else ((R, R, 3), np.dtype(np.uint8))
    out = empty_batch(config, len(rows), pad=self.tokenizer.pad, image_shape=shape, dtype=dtype)
    for b, row in enumerate(rows):
      folder, documents, variants = self._row(step, int(row))
      read = (folder.read(d, v) for d, v in zip(documents.tolist(), variants.tolist()))
      fill_row(out, b, (r for r in read if r is not None), patches=P, power=config.data.text_length_power)
    if not batch_learns(config, out) and not any(f.learns_D[d].any() for f, d, _ in (self._row(step, r) for r in all_rows)):
      self._idle_steps.add(step)
    return out

  def iterate(
      self, start: int, stop: int, rows: np.ndarray | None = None, *, threads: int = 2, buffer: int = 4
  ) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` to `stop`, made ahead in the background."""
    return prefetch(lambda step: self.batch(step, rows), start, stop, threads=threads, buffer=buffer)


def _pair(folder: int, row: int) -> tuple[int, int]:
  return folder, int(row)

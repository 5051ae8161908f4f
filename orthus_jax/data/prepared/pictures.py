"""Pictures of folders that `orthus prepare` made, read when they are shown."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

import grain
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data.pictures import HeldOut
from orthus_jax.data.prepared import format as record_format
from orthus_jax.data.prepared.shards import Shards
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line
from orthus_jax.storage import bring

_DIGESTED = ("images", "pictures", "digest")


class PreparedPictures:
  """The pictures of `data.path`, or of `data.mixture` with shares of the pictures shown, as `pictures.Pictures`.

  Which one is shown is a closed form of its place in the stream, so that memory doesn't grow with the data. One that
  can't be read is counted, and the next one that can takes its place.

  Raises:
    BadRequest: if a folder isn't there, was made with another filter than the model's, or holds features.
  """

  def __init__(self, config: Config):
    self._config = config
    mixture = config.data.mixture or ((config.data.path, 1.0),)
    folders = [Path(bring.local(p)) for p, _ in mixture]
    self._facts = [record_format.read_facts(f) for f in folders]
    for folder, facts in zip(folders, self._facts):
      _check(folder, facts, config)
    self._bad = [BadRecords(max_share=config.data.max_bad_share, total=f["pictures"]) for f in self._facts]
    self._shards = [Shards.of(p, f, "pictures", b) for p, f, b in zip(folders, self._facts, self._bad)]
    self._paths, self._ends = folders, np.cumsum([len(s) for s in self._shards])
    self._split = HeldOut(int(self._ends[-1]), config.tokenizer_loss.held_out)
    self.trained, self.held_out = self._split.trained, self._split.count
    bounds = [0, *(self._split.before(int(end)) for end in self._ends)]
    streams = []
    for f, (low, high) in enumerate(zip(bounds, bounds[1:])):
      if low == high:
        raise BadRequest(f"{folders[f]} holds no picture to train on: the vision tokenizer learns from pictures")
      streams.append(grain.MapDataset.range(low, high).seed(config.run.seed * 1009 + f).shuffle().repeat())
    self._stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, [w for _, w in mixture])

  def draw(self, places: np.ndarray) -> list[int]:
    return [int(self._stream[int(p)]) for p in places]

  def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.stack([self._readable(int(n)) for n in numbers])

  def contents(self) -> dict[str, Any]:
    said = json.dumps([[f.get(n) for n in _DIGESTED] for f in self._facts])
    return {"documents": int(self._ends[-1]), "digest": hashlib.sha256(said.encode()).hexdigest()}

  def _readable(self, number: int) -> np.ndarray:
    """A picture, or the next one of the same sort, trained or held out, that can be read."""
    low, high = (0, self.trained) if number < self.trained else (self.trained, self.trained + self.held_out)
    for i in range(high - low):
      pixels = self._read(self._split.place(low + (number - low + i) % (high - low)))
      if pixels is not None:
        return pixels
    raise BadRequest(f"no picture of {', '.join(map(str, self._paths))} can be read: bring them back or prepare them anew")

  def _read(self, place: int) -> np.ndarray | None:
    f = int(np.searchsorted(self._ends, place, side="right"))
    number, bad = place - (int(self._ends[f - 1]) if f else 0), self._bad[f]
    record = self._shards[f].read(number)
    if record is None:
      return None
    try:
      return record_format.read_picture(record, self._config, self._facts[f])
    except (ValueError, OSError, SyntaxError) as e:
      bad.report(str(self._paths[f]), f"picture {number}", first_line(e))
      bad.check()
      return None


def _check(folder: Path, facts: dict[str, Any], config: Config) -> None:
  if facts.get("images") not in ("pixels", "jpeg"):
    raise BadRequest(
        f"{folder} holds {facts.get('images')}, and the vision tokenizer learns from pictures: prepare it with"
        " --images=pixels or --images=jpeg"
    )
  record_format.check(folder, facts, record_format.picture_facts(config))

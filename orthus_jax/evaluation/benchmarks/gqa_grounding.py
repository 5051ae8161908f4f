"""GQA's grounding: how much of an attention map lies on the objects that a question and its answer are about."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Notes


@dataclasses.dataclass(frozen=True)
class Maps:
  """Attention maps and the scenes that they lie on.

  Attributes:
    scenes: scene graphs by picture.
    maps_SS: attention maps by question, S × S.
    size: S.
    scenes_file: for messages.
    maps_file: for messages.
  """

  scenes: dict[str, Any]
  maps_SS: dict[Any, list[list[float]]]
  size: int
  scenes_file: Path
  maps_file: Path

  @classmethod
  def read(cls, scenes: Path, maps: Path, size: int) -> Maps:
    """Reads both.

    Raises:
      BadRequest: if a file is missing or holds something else.
    """
    if size < 1:
      raise BadRequest(f"map_size={size}: it must be at least 1")
    what = 'GQA\'s attention maps are a list of {"questionId": …, "attention": …}'
    entries = reading.whole_json(reading.existing(maps, "attention maps"), list, what)
    by_id = {
        reading.field(e, "questionId", (str, int), what, maps, n, entry=True):
        reading.field(e, "attention", list, what, maps, n, entry=True) for n, e in enumerate(entries, 1)
    }  # fmt: skip
    graphs = reading.whole_json(reading.existing(scenes, "scene graphs"), dict, "GQA's scene graphs are an object")
    return cls(graphs, by_id, size, scenes, maps)

  def score(self, asked_id: str, question: Any, notes: Notes) -> tuple[float, float]:
    """The attention on a question's regions, each cell's times the share of the cell that a region covers.

    The second figure is a straight reading's: it adds the whole picture for a question of the scene, which the tool looks
    for under a name that no question has.

    Raises:
      BadRequest: if there is no map of the question, no scene of its picture, or another form.
    """
    if asked_id not in self.maps_SS:
      raise BadRequest(f"{self.maps_file} has no attention map for question {asked_id}")
    if (scene := self.scenes.get(question.imageId)) is None:
      raise BadRequest(f"{self.scenes_file} has no scene graph of picture {question.imageId}")
    map_SS = self.maps_SS[asked_id]
    try:
      if len(map_SS) > self.size:
        notes.add(f"attention maps of over {self.size} rows, of which the tool reads the first", self.maps_file, None, asked_id)
      map_SS = np.array([[float(v) for v in row[: self.size]] for row in map_SS[: self.size]])
      if map_SS.shape != (self.size, self.size):
        raise ValueError("another size")
    except (TypeError, ValueError, OverflowError) as e:
      raise BadRequest(f"{self.maps_file}: the map of question {asked_id} isn't {self.size} × {self.size} numbers") from e
    cover_SS = np.zeros((self.size, self.size))
    about = question.annotations
    for pointer in (*about["question"].values(), *about["fullAnswer"].values()):
      try:
        box = scene["objects"][pointer]
        across = self._share(box["x"], box["w"], scene["width"])
        down = self._share(box["y"], box["h"], scene["height"])
      except (KeyError, TypeError, ValueError, ArithmeticError) as e:
        where = f"{self.scenes_file}: picture {question.imageId}"
        raise BadRequest(f"{where} has no object {pointer} with x, y, w, h, or no width and height") from e
      cover_SS += np.outer(across, down)
    found = float((map_SS * cover_SS).sum())
    whole = any(step.argument == "scene" for step in question.semantic)
    return found, found + whole * float(map_SS.sum())

  def _share(self, start: float, length: float, extent: float) -> np.ndarray:
    """Of each of the S cells along an axis, the share that a region covers."""
    edge = np.arange(self.size + 1) / self.size
    covered = np.minimum(edge[1:], float(start + length) / extent) - np.maximum(edge[:-1], float(start) / extent)
    return np.maximum(covered, 0) * self.size

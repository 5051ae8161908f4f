"""Metrics on disk: TensorBoard event files and JSON lines."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tensorboardX import SummaryWriter

_log = logging.getLogger(__name__)


class MetricWriter:
  """Writes scalars, pictures and texts of one run; a resumed run appends.

  Args:
    workdir: gets metrics.jsonl and tensorboard/.
    enabled: False on all processes but the first.
  """

  def __init__(self, workdir: Path, *, enabled: bool = True):
    self.workdir = workdir
    self._board: Any = SummaryWriter(str(workdir / "tensorboard"), flush_secs=20) if enabled else None
    self._lines = _open_to_append(workdir / "metrics.jsonl") if enabled else None

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """One record; a value that is not finite is written as null, which JSON can hold."""
    if self._lines is None:
      return
    record = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    try:
      self._lines.write(json.dumps(record) + "\n")
      self._lines.flush()
    except OSError as e:  # a full disk is no reason to lose the run
      _log.warning("the metrics of step %d are lost: %s", step, e.strerror)
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """uint8 [height, width, 3]."""
    if self._board is not None:
      self._board.add_image(name, pixels, step, dataformats="HWC")

  def text(self, step: int, name: str, text: str) -> None:
    if self._board is not None:
      self._board.add_text(name, text, step)

  def close(self) -> None:
    if self._lines is not None:
      self._lines.close()
      self._board.close()


def _open_to_append(file: Path) -> TextIO:
  """Opens a file of lines, ending the line that a killed process may have left unfinished."""
  f = file.open("ab+")
  if f.tell():
    f.seek(-1, 2)
    if f.read(1) != b"\n":
      f.write(b"\n")
  return io.TextIOWrapper(f, encoding="utf-8")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """The records of a run, the newest where a step was written twice (after a resume)."""
  file = workdir / "metrics.jsonl"
  if not file.is_file():
    return []
  by_step: dict[int, dict[str, Any]] = {}
  for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      record = json.loads(line)
    except ValueError:
      continue  # cut short when its process was killed
    by_step[record["step"]] = by_step.get(record["step"], {}) | record
  return [by_step[s] for s in sorted(by_step)]

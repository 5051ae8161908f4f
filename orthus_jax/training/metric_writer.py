"""Metrics as JSON lines in the workdir, and handed to the loggers that a run has."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.training.loggers import base, registry

_log = logging.getLogger(__name__)


class MetricWriter:
  """Writes scalars, pictures and texts of one run; one that goes on from a step drops what was written after it.

  Args:
    workdir: gets metrics.jsonl, evaluations.jsonl and what its loggers write.
    start: the step that the run goes on from.
    enabled: False on all processes but the first.
    loggers: names, as `run.loggers` has them.
    config: of the run, for loggers that show it.
  """

  def __init__(
      self, workdir: Path, *, start: int = 0, enabled: bool = True, loggers: Sequence[str] = ("tensorboard",),
      config: dict[str, Any] | None = None,
  ):  # fmt: skip
    self.workdir = workdir
    self._loggers: list[base.Logger] = []
    self._lines = None
    if enabled:
      _drop_after(start, workdir / "metrics.jsonl")
      _drop_after(start, workdir / "evaluations.jsonl")
      self._lines = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
      self._loggers = registry.open_all(loggers, workdir, start=start, config=config or {})

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """One record; a value that is not finite is written as null, which JSON can hold."""
    if self._lines is None:
      return
    row = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    try:
      self._lines.write(json.dumps(row) + "\n")
      self._lines.flush()
    except OSError as e:  # a full disk is no reason to lose the run
      _log.warning("the metrics of step %d are lost: %s", step, e.strerror)
    for logger in self._loggers:
      logger.scalars(step, values)

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Scores of a benchmark: a line of evaluations.jsonl, beside the training's own metrics."""
    if self._lines is None:
      return
    row = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    try:
      with (self.workdir / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    except OSError as e:
      _log.warning("the scores of step %d are lost: %s", step, e.strerror)
    for logger in self._loggers:
      logger.scalars(step, values)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """uint8 [height, width, 3]."""
    for logger in self._loggers:
      logger.image(step, name, pixels)

  def text(self, step: int, name: str, text: str) -> None:
    for logger in self._loggers:
      logger.text(step, name, text)

  def close(self) -> None:
    if self._lines is not None:
      with contextlib.suppress(OSError):  # a full disk, which was told of: how the run ends is another matter
        self._lines.close()
    for logger in self._loggers:
      logger.close()


def _drop_after(start: int, file: Path) -> None:
  """Leaves the lines of steps up to `start`, one each (and benchmark); the file is replaced whole, if it has to change."""
  if not file.is_file():
    return
  text = file.read_text(encoding="utf-8", errors="replace")
  kept: dict[tuple[int, str], str] = {}
  unreadable = 0
  for line in text.splitlines():
    found = record(line)
    if found is None:
      unreadable += 1
    elif found["step"] <= start:
      kept[found["step"], next((n for n in found if n != "step"), "").rpartition("/")[0]] = line
  if unreadable:
    _log.warning("left %d unreadable lines out of %s, cut short when their process was killed", unreadable, file)
  whole = "".join(f"{line}\n" for _, line in sorted(kept.items()))
  if whole != text:
    try:
      files.write_text(file, whole)
    except OSError as e:  # a full disk is no reason to lose the run; readers take the newest of a step
      _log.warning("%s keeps lines of steps after %d: %s", file, start, e.strerror)


def record(line: str | bytes) -> dict[str, Any] | None:
  """A line's record; None for what isn't one, as where a process was killed in its midst."""
  try:
    value = json.loads(line)
  except ValueError:
    return None
  return value if isinstance(value, dict) and type(value.get("step")) is int else None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """The records of a run in the order of their steps, the newest where a step was written twice."""
  file = workdir / "metrics.jsonl"
  if not file.is_file():
    return []
  records = map(record, file.read_text(encoding="utf-8", errors="replace").splitlines())
  by_step = {r["step"]: r for r in records if r is not None}
  return [by_step[s] for s in sorted(by_step)]

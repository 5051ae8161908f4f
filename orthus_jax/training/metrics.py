"""Metrics as JSON lines and TensorBoard event files, and a progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
import resource
import sys
import time
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
import tqdm


class MetricWriter:
  """Writes scalars, pictures and texts of one run; a resumed run appends.

  Args:
    workdir: gets metrics.jsonl and tensorboard/.
    enabled: False on all processes but the first.
  """

  def __init__(self, workdir: Path, *, enabled: bool = True):
    self._board = SummaryWriter(str(workdir / "tensorboard"), flush_secs=20) if enabled else None
    self._lines = (workdir / "metrics.jsonl").open("a", encoding="utf-8") if enabled else None

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """One record; a value that is not finite is written as null, which JSON can hold."""
    if self._lines is None:
      return
    record = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines.write(json.dumps(record) + "\n")
    self._lines.flush()
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


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """The records of a run, the newest where a step was written twice (after a resume)."""
  file = workdir / "metrics.jsonl"
  if not file.is_file():
    return []
  by_step: dict[int, dict[str, Any]] = {}
  for line in file.read_text(encoding="utf-8").splitlines():
    record = json.loads(line)
    by_step[record["step"]] = by_step.get(record["step"], {}) | record
  return [by_step[s] for s in sorted(by_step)]


def peak_memory_bytes() -> int:
  """The most memory that this process has held."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


class Progress:
  """A bar with loss, tokens/s and time left; where no terminal watches, a line every `every` seconds."""

  def __init__(self, *, total: int, initial: int = 0, every: float = 20.0, enabled: bool = True):
    tty = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
        total=total, initial=initial, desc="training", unit="step", disable=not enabled, dynamic_ncols=tty,
        mininterval=0.2 if tty else every, maxinterval=1.0 if tty else every,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )  # fmt: skip
    self._tokens, self._start = 0, time.monotonic()

  def update(self, *, tokens: int, loss: float | None = None) -> None:
    """One step done."""
    self._tokens += tokens
    if loss is not None:
      rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
      self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
    self._bar.update()

  def say(self, text: str) -> None:
    """A line above the bar."""
    self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    self._bar.close()

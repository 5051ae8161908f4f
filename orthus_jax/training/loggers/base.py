"""What metrics are sent to, and where a workdir keeps which run of a service it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from orthus_jax import files


class Logger(Protocol):
  """One place for a run's metrics, beside metrics.jsonl. Any method may raise: `background.Background` sees to that."""

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Numbers of a step; some may not be finite."""

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """uint8 [height, width, 3]."""

  def text(self, step: int, name: str, text: str) -> None:
    """Words of a step."""

  def close(self) -> None:
    """Sends what is left."""


class Open(Protocol):
  """What a logger's module offers as `open_logger`."""

  def __call__(self, workdir: Path, *, start: int, config: dict[str, Any]) -> Logger:
    """Opens it for a run.

    Args:
      workdir: the run's.
      start: the step that it goes on from.
      config: nested plain values.
    """


def kept_id(workdir: Path, name: str) -> str:
  """The service's own name for this run, so that a start goes on with it; empty where it has none yet."""
  try:
    found = json.loads(_file(workdir, name).read_text(encoding="utf-8"))["id"]
  except (OSError, ValueError, LookupError, TypeError):
    return ""
  return found if isinstance(found, str) else ""


def keep_id(workdir: Path, name: str, run_id: str) -> None:
  """Writes what `kept_id` reads."""
  file = _file(workdir, name)
  file.parent.mkdir(exist_ok=True)
  files.write_text(file, json.dumps({"id": run_id}) + "\n")


def _file(workdir: Path, name: str) -> Path:
  return workdir / "loggers" / f"{name}.json"

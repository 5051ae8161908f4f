"""The one table of loggers, by the names that `run.loggers` takes."""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import functools
import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any, NamedTuple

from orthus_jax.errors import BadRequest
from orthus_jax.training.loggers import base
from orthus_jax.training.loggers.background import Background

_log = logging.getLogger(__name__)


class Entry(NamedTuple):
  """A module of this folder, the library that it takes, and whether that library may keep a step waiting.

  TensorBoard's own thread dies of a full disk, and who hands it more then waits for ever (tensorboardX 2.6).
  """

  module: str
  library: str
  background: bool


LOGGERS = {
    "tensorboard": Entry("tensorboard", "tensorboardX", True),
    "wandb": Entry("wandb", "wandb", True),
    "mlflow": Entry("mlflow", "mlflow", True),
}  # fmt: skip


def check(names: Sequence[str]) -> None:
  """Refuses names that none has, or that come twice.

  Raises:
    BadRequest: naming the nearest.
  """
  for i, name in enumerate(names):
    if name not in LOGGERS:
      near = difflib.get_close_matches(name, LOGGERS, n=1, cutoff=0.0)[0]
      raise BadRequest(f"run.loggers: there is no {name!r}; the nearest is {near!r} (all: {', '.join(LOGGERS)})")
    if name in names[:i]:
      raise BadRequest(f"run.loggers has {name!r} twice: leave one out")


def open_all(names: Sequence[str], workdir: Path, *, start: int, config: dict[str, Any]) -> list[base.Logger]:
  """Opens them; one whose library isn't installed is left out, with a line that says what to install."""
  found: list[base.Logger] = []
  for name in names:
    entry = LOGGERS[name]
    if importlib.util.find_spec(entry.library) is None:
      _log.warning("%s isn't installed, and gets nothing of this run: pip install 'orthus_jax[%s]'", entry.library, name)
      continue
    open_logger: base.Open = importlib.import_module(f"orthus_jax.training.loggers.{entry.module}").open_logger
    opened = functools.partial(open_logger, workdir, start=start, config=config)
    found.append(Background(name, opened) if entry.background else opened())
  return found

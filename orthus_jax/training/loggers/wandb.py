"""Weights & Biases. Its own process sends; what can't be sent lies in WORKDIR/wandb, for `wandb sync`."""

from __future__ import annotations

import html
import logging
import os
from pathlib import Path
from typing import Any
import uuid

import numpy as np

from orthus_jax import files
from orthus_jax.training.loggers import base

_INIT, _FINISH = 30.0, 10.0  # seconds for the server to answer, and to take what is left
_log = logging.getLogger(__name__)


class Wandb:
  """A `Logger` to a run of W&B. Its steps only rise: of steps that are done again, it keeps what it has."""

  def __init__(self, run: Any, library: Any):
    self._run, self._library = run, library

  def scalars(self, step: int, values: dict[str, float]) -> None:
    self._run.log(values, step=step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    self._run.log({name: self._library.Image(pixels)}, step=step)

  def text(self, step: int, name: str, text: str) -> None:
    self._run.log({name: self._library.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

  def close(self) -> None:
    self._run.finish()


def open_logger(workdir: Path, *, start: int, config: dict[str, Any]) -> Wandb:
  """As `base.Open` says; offline where there is no key, or no server answers.

  W&B's own environment variables hold (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, …).
  """
  os.environ.setdefault("WANDB_SILENT", "true")
  import wandb

  run_id = base.kept_id(workdir, "wandb")
  again = bool(run_id)
  if not again:
    run_id = uuid.uuid4().hex[:8]
    base.keep_id(workdir, "wandb", run_id)

  def begin(**more: Any) -> Any:
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "orthus"), name=workdir.name, id=run_id, dir=str(workdir), config=config,
        settings=wandb.Settings(init_timeout=_INIT, finish_timeout=_FINISH, console="off"), **more,
    )  # fmt: skip

  mode = os.environ.get("WANDB_MODE", "")
  if mode not in ("", "online", "shared"):
    return Wandb(begin(mode=mode), wandb)
  try:
    if wandb.login(prompt=False):  # without a key, init would ask for one on the terminal
      return Wandb(begin(resume="allow" if again else None), wandb)
    why = "there is no key here (`wandb login`)"
  except Exception as e:  # no server, a key that it doesn't take
    why = files.first_line(e)[:200]
    wandb.teardown()  # it would have the run's id in use
  _log.warning("wandb: %s: kept in %s for `wandb sync`", why, workdir / "wandb")
  return Wandb(begin(mode="offline"), wandb)

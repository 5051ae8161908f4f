"""The training step, compiled in a thread while the documents are read: neither waits for the other."""

from __future__ import annotations

import logging
from pathlib import Path
import threading
import time
from typing import Any

import jax

from orthus_jax.config import Config
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import tasks
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import jit_step, train_step

_log = logging.getLogger(__name__)
_WORTH = 4096  # documents: fewer are read before much is compiled
_NAME = "compiles the step ahead"


class StepAhead:
  """A step under way.

  Args:
    config: of an Orthus whose batches are made from documents.
  """

  def __init__(self, config: Config):
    self._config = config
    self._mesh = mesh_lib.make_mesh(config.mesh)
    self._batch = tasks.batch_shapes(config)
    self._made: Any = None
    self.seconds = 0.0
    self._thread = threading.Thread(target=self._compile, name=_NAME)  # a daemon would abort in XLA when the interpreter ends
    self._thread.start()

  def _compile(self) -> None:
    began, config = time.monotonic(), self._config
    try:
      task = tasks.OrthusTask(config, None)
      optimizer = make_optimizer(config.optimizer, config.run)
      with jax.set_mesh(self._mesh):
        layout, _ = plan_run(config, task.init, optimizer=optimizer, mesh=self._mesh)
        step = jit_step(train_step(task, optimizer, config, layout), layout, self._mesh, self._batch, config)
        self._made = step.lower(layout.shapes, self._batch).compile()
    except Exception:  # who compiles it again meets it, and says it
      _log.debug("the step isn't compiled ahead", exc_info=True)
    self.seconds = time.monotonic() - began

  def take(self, batch: Any) -> Any:
    """The compiled step for batches of these shapes, once it is there; None if it isn't for them, or can't be compiled."""
    self._thread.join()
    made, self._made = self._made, None  # it is to go with the steps
    return made if batch == self._batch else None


def start(config: Config, documents: int, workdir: Path) -> StepAhead | None:
  """Begins, where many documents are to be read, by one process, for a run that isn't done.

  Not on a GPU, whose compiler chooses by what it measures there: it is to be alone.
  """
  wanted = documents >= _WORTH and config.data.source != "prepared" and not config.run.resume_from and jax.process_count() == 1
  if not wanted or jax.default_backend() == "gpu" or max(checkpoint.steps(workdir), default=0) >= config.run.steps:
    return None
  return StepAhead(config)


def under_way() -> bool:
  """Whether a process that ends by itself would wait for a compilation, which can't be interrupted."""
  return any(t.name == _NAME for t in threading.enumerate())

"""What several verbs share: start-up of JAX, and argument parsing with one-line errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from orthus_jax.config import BadRequest
from orthus_jax.data.sources import cache_dir


class Parser(argparse.ArgumentParser):
  """An argument parser that reports a mistake as a BadRequest."""

  def error(self, message: str):
    raise BadRequest(f"{message} (`{self.prog} --help` lists the options)")


class _ToStderr(logging.Handler):
  """Plain lines on whatever standard error is at the time."""

  def emit(self, record: logging.LogRecord) -> None:
    print(self.format(record), file=sys.stderr)


def start(*, verbose: bool = False) -> None:
  """Quiet logs, and compiled programs kept from one command to the next."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's C++ log: errors alone
  ours = logging.getLogger("orthus_jax")
  if not ours.handlers:
    ours.addHandler(_ToStderr())
  ours.setLevel(logging.INFO if verbose else logging.WARNING)
  ours.propagate = False
  for noisy in ("absl", "orbax", "jax", "tensorboardX"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  import jax

  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

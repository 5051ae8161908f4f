"""What tests of conversions share; their checkpoints are fixtures of `conftest.py`."""

from pathlib import Path

import numpy as np
import plain

from orthus_jax import cli
from orthus_jax.config import ModelConfig
from orthus_jax.models.orthus import describe


def convert(*argv) -> None:
  assert cli.main(["convert", *map(str, argv)]) == 0


def refused(capsys, *argv) -> str:
  """The one line that a bad request ends in; nothing new may be left beside --to."""
  target = next(Path(a.removeprefix("--to=")) for a in map(str, argv) if a.startswith("--to="))
  before = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
  assert cli.main(["convert", *map(str, argv)]) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith("orthus: ") and captured.err.count("\n") == 1, captured.err
  assert (sorted(target.parent.iterdir()) if target.parent.is_dir() else []) == before
  return captured.err


def in_memory(model: ModelConfig, values) -> dict[str, np.ndarray]:
  """What `plain.import_params`, which other tests hold against the released code, makes of the arrays."""
  return plain.import_params(values, describe(model)[1])

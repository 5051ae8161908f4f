"""TensorBoard's event files, in WORKDIR/tensorboard."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
import sys
from typing import Any

import numpy as np


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """tensorboardX (2.6) imports torch wherever it is installed, for a type's sake: seconds of each start, and its memory."""
  if "torch" in sys.modules:
    yield
    return
  sys.modules["torch"] = None  # type: ignore[assignment]  # which is how Python notes that there is none
  try:
    yield
  finally:
    del sys.modules["torch"]


with _without_torch():
  from tensorboardX import SummaryWriter


class TensorBoard:
  """A `Logger` onto the disk."""

  def __init__(self, folder: Path, *, start: int):
    # TensorBoard hides what older files of the run hold of this step and later ones.
    again = start + 1 if folder.is_dir() and any(folder.iterdir()) else None
    self._board: Any = SummaryWriter(str(folder), flush_secs=20, purge_step=again)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    self._board.add_image(name, pixels, step, dataformats="HWC")

  def text(self, step: int, name: str, text: str) -> None:
    self._board.add_text(name, text, step)

  def close(self) -> None:
    self._board.close()


def open_logger(workdir: Path, *, start: int, config: dict[str, Any]) -> TensorBoard:
  """As `base.Open` says."""
  return TensorBoard(workdir / "tensorboard", start=start)

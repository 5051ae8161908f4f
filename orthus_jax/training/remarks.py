"""What a run says while it runs, in WORKDIR/log.txt, for those who can't see its terminal."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from orthus_jax import errors

FILE = "log.txt"
_HEAD = "%Y-%m-%d %H:%M:%S"
_MOST = 1000  # lines that are held until there is a workdir
_TAIL = 1 << 16  # bytes at the file's end, in which the last lines are looked for


class Remarks(logging.Handler):
  """Keeps the package's log, from here on to `close`; all that was said before `keep` is written by it."""

  def __init__(self) -> None:
    super().__init__(logging.INFO)
    self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", _HEAD))
    self._waiting: list[str] = []
    self._file: Any = None
    logging.getLogger("orthus_jax").addHandler(self)

  def keep(self, workdir: Path) -> None:
    """Writes to the workdir's file from here on."""
    try:
      self._file = (workdir / FILE).open("a", encoding="utf-8", errors="backslashreplace")
    except OSError:
      return
    for line in self._waiting:
      self._write(line)

  def ended(self, why: BaseException) -> None:
    """Says why the run ends early."""
    self.handle(logging.LogRecord("orthus_jax", logging.ERROR, "", 0, "%s", (str(why) or type(why).__name__,), None))

  def emit(self, record: logging.LogRecord) -> None:
    line = errors.one_line(self.format(record))
    if self._file is not None:
      self._write(line)
    elif len(self._waiting) < _MOST:
      self._waiting.append(line)

  def close(self) -> None:
    logging.getLogger("orthus_jax").removeHandler(self)
    if self._file is not None:
      with contextlib.suppress(OSError):  # a full disk
        self._file.close()
    super().close()

  def _write(self, line: str) -> None:
    try:
      self._file.write(f"{line}\n")
      self._file.flush()
    except (OSError, ValueError):  # a full disk is no reason to lose the run
      pass


def last(workdir: Path, count: int, *, warnings: bool = False) -> list[str]:
  """The newest lines, or the newest that are warnings or errors."""
  try:
    with (workdir / FILE).open("rb") as file:
      file.seek(max(file.seek(0, 2) - _TAIL, 0))
      lines = file.read().decode(errors="replace").splitlines()
  except OSError:
    return []
  return [x for x in lines if not warnings or x[20:].startswith(("WARNING", "ERROR"))][-count:]

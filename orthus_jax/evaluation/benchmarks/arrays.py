"""Arrays that others' tools wrote: .npy and .npz files of embeddings and features, with errors that name file and array."""

from __future__ import annotations

from pathlib import Path
import zipfile
import zlib

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.files import first_line

# What NumPy's readers were seen to raise on files that are cut, changed or of another kind.
_BROKEN = (ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, SyntaxError, MemoryError,
           OverflowError, AttributeError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def load(path: str | Path, what: str) -> dict[str, np.ndarray]:
  """All arrays of a file by name; a .npy file's one has the name "".

  Args:
    path: of the file.
    what: it should hold, for the message.

  Raises:
    BadRequest: if it isn't there, or is no such file.
  """
  path = reading.existing(path, what)
  try:
    with open(path, "rb") as f:
      found = np.load(f, allow_pickle=False)
      return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
  except OSError as e:
    raise BadRequest(f"{path} can't be read: {e.strerror or first_line(e)}") from e
  except _BROKEN as e:
    raise BadRequest(f"{path} isn't a .npy or .npz file of numbers ({first_line(e)}): {what} belong there") from e


def rows(path: str | Path, array: np.ndarray, name: str, what: str) -> np.ndarray:
  """An array of numbers, [samples, dimensions], all of them finite.

  Raises:
    BadRequest: if it is another, naming its first row with a number that isn't finite.
  """
  called = f"{path}: {name}" if name else str(path)
  if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
    shape, kind = list(getattr(array, "shape", ())), getattr(array, "dtype", type(array).__name__)
    raise BadRequest(f"{called} is {kind} {shape} where numbers [samples, dimensions] are expected: {what}")
  if len(odd := np.flatnonzero(~np.isfinite(array).all(1))):
    raise BadRequest(f"{called}: {len(odd):,} of {len(array):,} rows hold numbers that aren't finite, first row {odd[0]}"
                     " (from 0): make them again")  # fmt: skip
  return array

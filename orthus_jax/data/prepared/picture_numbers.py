"""Which of the pictures that were written a picture is."""

from __future__ import annotations

import sqlite3

from orthus_jax.errors import BadRequest


class PictureNumbers:
  """The number of each picture by its key, in a file that goes when this does; millions of them take little memory."""

  def __init__(self) -> None:
    self._db = sqlite3.connect("", isolation_level=None)
    self._db.execute("CREATE TABLE pictures (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
    self._db.execute("BEGIN")
    self._count = 0

  def __len__(self) -> int:
    return self._count

  def get(self, key: bytes) -> int | None:
    """The number of a picture; None where it has none."""
    row = self._db.execute("SELECT number FROM pictures WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None

  def add(self, key: bytes) -> int:
    """Gives a picture the next number.

    Raises:
      BadRequest: the disk of temporary files is full.
    """
    try:
      self._db.execute("INSERT INTO pictures VALUES (?, ?)", (key, self._count))
    except sqlite3.OperationalError as e:
      raise BadRequest(f"no room for temporary files ({e}): set TMPDIR to a larger disk; the same command goes on") from e
    self._count += 1
    return self._count - 1

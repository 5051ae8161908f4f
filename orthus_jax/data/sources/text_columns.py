"""Which column of a table holds the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

USUAL = ("text", "caption", "captions", "prompt", "description", "sentence", "TEXT", "alt", "title")


def choose(
    columns: Sequence[str], asked: Sequence[str], file: Path, other: Callable[[str], bool] = lambda column: False,
    usual: Sequence[str] = (),
) -> tuple[str, ...]:
  """The columns that may hold the text, in order of preference.

  Args:
    columns: the table's.
    asked: those that the user names; if none, the usual names are looked for, then a single column that is left.
    file: for messages.
    other: whether a column is known to be something else.
    usual: names that are looked for ahead of the usual ones.

  Raises:
    BadRequest: none fits.
  """
  left = [c for c in columns if not other(c)]
  found = [c for c in asked if c in columns] if asked else [c for c in (*usual, *USUAL) if c in left]
  found = found or (left if len(left) == 1 and not asked else [])
  if not found:
    wanted = f"called {', '.join(asked)}" if asked else "for the text, which is called text, caption or prompt"
    raise BadRequest(f"{file} has no column {wanted}; choose among {', '.join(left) or 'others'} by --text")
  return tuple(found)


def words(record: Mapping[str, Any], columns: Sequence[str]) -> str:
  """The first of a row's texts that has words.

  Raises:
    BadRequest: none has; what is wrong with the first.
  """
  there = [c for c in columns if c in record]
  column = next((c for c in there if isinstance(record[c], str) and record[c].strip()), there[0] if there else "")
  if not column or (text := record[column]) is None:
    raise BadRequest(f"it has no text in {', '.join(columns)}")
  check_text(text, column)
  return text.strip()

"""Benchmarks' prompts in training texts: what is trained on isn't measured by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import csv
import hashlib
import json
from pathlib import Path
from typing import Any
import unicodedata

from orthus_jax.data.sources.json_lines import JsonLines
from orthus_jax.errors import BadRequest

COLUMNS = ("prompt", "prompts", "text")  # in order of preference, whatever their case
_RUN = 3  # words; shorter prompts stand in any text
_APOSTROPHES = "'`\u00b4\u02bc\u2018\u2019\uff07"


class _Table(dict):
  """What becomes of characters: letters, marks and digits stay, those of scripts without spaces are words of their own."""

  def __missing__(self, code: int) -> str | None:
    c = chr(code)
    category = unicodedata.category(c)
    kept: str | None = c if category[0] in "LMN" else " "
    if c in _APOSTROPHES or category == "Cf":
      kept = None  # don't and dont are one word, and so is what a soft hyphen parts
    elif unicodedata.name(c, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA")):
      kept = f" {c} "
    self[code] = kept
    return kept


_TABLE = _Table()


def words(text: str) -> list[str]:
  """The words of a text as they are compared: case folded, Unicode's variants made one, punctuation left out."""
  if text.isascii():
    return text.lower().translate(_TABLE).split()
  folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
  return folded.translate(_TABLE).split()


class Prompts:
  """Prompts that are looked for.

  A text holds a prompt whose words stand in it in a row; one of fewer than three words only where it has no others.

  Args:
    named: (name, prompt) pairs; of prompts with the same words the first one's name counts.
  """

  def __init__(self, named: Iterable[tuple[str, str]]):
    self._names: dict[str, str] = {}
    # From the first words of prompts to how many words they have: few places of a text are looked at twice.
    self._lengths: dict[tuple[str, ...], list[int]] = {}
    for name, prompt in named:
      found = words(prompt)
      if found:
        self._names.setdefault(" ".join(found), name)
      if len(found) >= _RUN and len(found) not in (lengths := self._lengths.setdefault(tuple(found[:_RUN]), [])):
        lengths.append(len(found))

  @classmethod
  def read(cls, paths: Iterable[Path | str]) -> Prompts:
    """Prompts of benchmarks' files, named by file and line.

    Args:
      paths: .txt files with a prompt a line; .jsonl, .json, .csv and .tsv files with a column "prompt" or "text"; folders
        of .txt files, or of .jsonl files.

    Raises:
      BadRequest: one isn't there, can't be read, or holds no prompt.
    """
    named: list[tuple[str, str]] = []
    taken: dict[str, Path] = {}
    for path in map(Path, paths):
      for file in _files(path):
        short = file.name if file == path else f"{path.name}/{file.relative_to(path).as_posix()}"
        short = short if taken.setdefault(short, file) == file else str(file)
        count = len(named)
        named += ((f"{short}:{where}", prompt) for where, prompt in _prompts(file) if words(prompt))
        if len(named) == count:
          raise BadRequest(f"{file} holds no prompt: name a file with a prompt a line, or with a column {_wanted()}")
    return cls(named)

  def __len__(self) -> int:
    return len(self._names)

  def find(self, text: str) -> tuple[str, ...]:
    """Names of the prompts that a text holds, each once."""
    found = words(text)
    whole = " ".join(found)
    names = [self._names[whole]] if whole in self._names else []
    lengths = self._lengths
    for at, begin in enumerate(zip(*(found[i:] for i in range(_RUN)))):
      if begin in lengths:
        runs = (" ".join(found[at : at + n]) for n in lengths[begin] if at + n <= len(found))
        names += [self._names[run] for run in runs if run in self._names]
    return tuple(dict.fromkeys(names))

  def digest(self) -> str:
    """SHA-256 of all prompts and their names."""
    return hashlib.sha256(json.dumps(sorted(self._names.items())).encode()).hexdigest()


def _wanted() -> str:
  return " or ".join(f'"{c}"' for c in COLUMNS)


def _files(path: Path) -> list[Path]:
  if not path.is_dir():
    if not path.is_file():
      raise BadRequest(f"there is no {path}: name a file of a benchmark's prompts")
    return [path]
  texts, rows = (sorted(path.rglob(f"*{kind}")) for kind in (".txt", ".jsonl"))
  if texts and rows:  # a licence beside them, or the same prompts in two forms
    raise BadRequest(f"{path} holds .txt and .jsonl files ({texts[0].name}, {rows[0].name}): name those of the prompts")
  found = texts or rows
  if not found:
    raise BadRequest(f"{path} holds no .txt or .jsonl file of prompts: name a file")
  return found


def _prompts(file: Path) -> Iterator[tuple[int, str]]:
  """(line or number, prompt) of a file."""
  kind = file.suffix.lower()
  try:
    if kind == ".txt":
      yield from enumerate(file.read_text("utf-8-sig").split("\n"), start=1)
    elif kind == ".jsonl":
      rows = JsonLines(file)
      for i, line in enumerate(rows.lines):
        yield int(line), _value(_record(rows, i), file, f"line {line}")
    elif kind == ".json":
      yield from _of_json(json.loads(file.read_text("utf-8-sig")), file)
    elif kind in (".csv", ".tsv"):
      with file.open(encoding="utf-8-sig", newline="") as f:
        table = csv.DictReader(f, dialect="excel" if kind == ".csv" else "excel-tab")
        for row in table:
          yield table.line_num, _value(row, file, f"line {table.line_num}")
    else:
      raise BadRequest(f"{file}: prompts are read from .txt, .jsonl, .json, .csv and .tsv files, and from folders")
  except (OSError, ValueError, RecursionError, csv.Error) as e:
    raise BadRequest(f"{file} can't be read: {e}") from e


def _record(rows: JsonLines, row: int) -> dict[str, Any]:
  try:
    return rows.record(row)
  except BadRequest as e:
    raise BadRequest(f"{', '.join(rows.place(row))}: {e}") from e


def _of_json(rows: Any, file: Path) -> Iterator[tuple[int, str]]:
  """Prompts of a list of strings or objects, or of an object of such."""
  for number, row in enumerate(rows.values() if isinstance(rows, dict) else rows if isinstance(rows, list) else (), start=1):
    yield number, row if isinstance(row, str) else _value(row, file, f"entry {number}")


def _value(row: Any, file: Path, where: str) -> str:
  names = {str(k).strip().lower(): k for k in row} if isinstance(row, dict) else {}
  key = next((names[c] for c in COLUMNS if c in names), None)
  if key is None:
    here = f"it has {', '.join(map(str, row))}" if names else f"it is {type(row).__name__}"
    raise BadRequest(f"{file}, {where}: a prompt stands in a column {_wanted()}, and {here}")
  if not isinstance(row[key], str):
    raise BadRequest(f"{file}, {where}: \"{key}\" must be a text, got {row[key]!r}")
  return row[key]

"""Edits of pictures, as InstructPix2Pix' training set holds them: a folder a prompt, two pictures a seed."""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping, Sequence
import os
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import json_array, json_files
from orthus_jax.data.sources.json_lines import parse_object
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_SEEDS, _PROMPT = "seeds.json", "prompt.json"
_LONGEST = 255  # characters of a name
_BEFORE, _AFTER = "_0.jpg", "_1.jpg"


class InstructPix2Pix(Layout):
  """A seed of a folder makes one draft, of kind "edit": a picture and what to do are given, the other picture is to be
  learnt. What the pictures show is in its `meta` ("input", "output"), where the prompt says it.

  What is listed and isn't there is a bad row.
  """

  name = "instructpix2pix"
  usage = """Edits of pictures, as InstructPix2Pix' training set holds them.

    DIR/seeds.json              (annotations)   [["0000000", ["12", "345"]], …]; without it, all folders are read
    DIR/0000000/prompt.json     {"edit": "make it snow", "input": "a road", "output": "a road in snow"}
    DIR/0000000/12_0.jpg        before
    DIR/0000000/12_1.jpg        after
"""
  takes = frozenset({"annotations"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    name = options.annotations or _SEEDS
    if self.path.name == name and self.path.is_file():
      self.path = self.path.parent
    if not self.path.is_dir():
      raise BadRequest(f"there is no folder {str(self.path)!r}; give one that holds {name}")
    self._file = self.path / name
    if listed := self._file.is_file():
      found = self._listed()
    elif options.annotations:
      raise BadRequest(f"there is no {str(self._file)!r}; name a list of folders and seeds by --annotations")
    else:
      found = self._scanned()
    folders, of_rows, seeds = [], array.array("l"), []
    for folder, there in found:
      of_rows.extend([len(folders)] * len(there))
      folders.append(folder)
      seeds += there
    if not seeds and not self.broken:
      what = "lists no seed" if listed else f"isn't there, and no folder beside it holds a SEED{_BEFORE}"
      raise BadRequest(f"{str(self._file)!r} {what}; it needs [[folder, [seeds]], …]")
    self._folders, self._seeds = np.array(folders, np.str_), np.array(seeds, np.str_)
    self._of_rows = np.array(of_rows, np.int64)

  @classmethod
  def recognise(cls, path: Path) -> str:
    if path.is_file():
      return f"its {_SEEDS}" if path.name == _SEEDS else ""
    if (path / _SEEDS).is_file():
      return f"it holds {_SEEDS}"
    with os.scandir(path) as entries:
      first = next((e for e in entries if e.name.isdecimal() and e.is_dir()), None)
    if first and "edit" in json_files.beginning(Path(first, _PROMPT)):
      return f'its folders hold {_PROMPT} with "edit"'
    return ""

  def __len__(self) -> int:
    return len(self._seeds)

  def row_files(self) -> Sequence[Path]:
    return [self._file] if self._file.is_file() else []

  def place(self, row: int) -> tuple[str, str]:
    return str(self.path / self._folder(row)), f"seed {self._seeds[row]}"

  def drafts(self, row: int) -> tuple[Draft, ...]:
    folder, seed = self._folder(row), str(self._seeds[row])
    before, after = (local_picture(self.path, f"{folder}/{seed}{end}", what="the seed") for end in (_BEFORE, _AFTER))
    prompt = self._prompt(before.parent)
    if not isinstance(prompt.get("edit"), str):
      raise BadRequest(f'its {_PROMPT} needs a string "edit"; it has {", ".join(prompt) or "nothing"}')
    check_text(prompt["edit"])
    told = {"input": prompt.get("input", prompt.get("caption")), "output": prompt.get("output")}
    meta = {key: value for key, value in told.items() if value is not None}
    segments = (Picture(before), Text(prompt["edit"]), Picture(after, learn=True))
    return (Draft(segments, f"{folder}/{seed}", "edit", meta),)

  def fields(self) -> Mapping[str, str]:
    return json_files.examples(json_files.beginning(self.path / self._folder(0) / _PROMPT)) if len(self) else {}

  def _folder(self, row: int) -> str:
    return str(self._folders[self._of_rows[row]])

  def _prompt(self, folder: Path) -> dict[str, Any]:
    file = folder / _PROMPT

    def read() -> bytes:
      try:
        return file.read_bytes()
      except (FileNotFoundError, NotADirectoryError) as e:  # it won't come by waiting
        raise BadRequest(f"there is no {_PROMPT}" if folder.is_dir() else f"there is no folder {folder.name}") from e

    prompt = retry(str(file), read)
    try:
      return parse_object(prompt)
    except BadRequest as e:
      raise BadRequest(f"its {_PROMPT}: {e}") from e

  def _listed(self) -> Iterator[tuple[str, list[str]]]:
    """(folder, seeds) of the list.

    Raises:
      BadRequest: the first entry isn't such a pair.
    """
    listed = set[tuple[str, str]]()
    for number, element in enumerate(json_array.elements(self._file), start=1):
      fault, entry = element.fault, _entry(element.value)
      if not fault and not entry:
        if number == 1:
          raise BadRequest(
              f"{str(self._file)!r} isn't {self.name}: it needs [[folder, [seeds]], …]; its first entry is"
              f" {str(element.value)[:60]}"
          )
        fault = f"it isn't [folder, [seeds]] but {str(element.value)[:60]}"
      if fault or not entry:
        self.broken.append((str(self._file), f"entry {number}, byte {element.start + 1:,}", fault))
      elif not entry[1]:
        self.remarks.add("folders listed without a seed", entry[0])
      else:
        new = [s for i, s in enumerate(entry[1]) if (entry[0], s) not in listed and s not in entry[1][:i]]
        if len(new) < len(entry[1]):
          self.remarks.add("folders with pairs listed before, which count once", entry[0])
        listed.update((entry[0], s) for s in new)
        if new:
          yield entry[0], new

  def _scanned(self) -> Iterator[tuple[str, list[str]]]:
    with os.scandir(self.path) as entries:
      folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for folder in folders:
      try:
        seeds = sorted(n.removesuffix(_BEFORE) for n in os.listdir(self.path / folder) if n.endswith(_BEFORE))
      except OSError as e:
        self.broken.append((str(self.path / folder), "all of it", f"the folder can't be read: {e.strerror}"))
        continue
      if seeds:
        self.remarks.add(f"folders read without a {_SEEDS} that lists them", folder)
        yield folder, seeds
      else:
        self.remarks.add(f"folders passed over, which hold no SEED{_BEFORE}", folder)


def _entry(value: Any) -> tuple[str, list[str]] | None:
  """(folder, seeds) of a list's element, if it is one."""
  if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str) or not isinstance(value[1], list):
    return None
  names = [value[0], *map(str, value[1])]
  if not all(0 < len(name) <= _LONGEST for name in names) or any(isinstance(seed, (list, dict)) for seed in value[1]):
    return None
  try:  # the array's strings are bytes, but for those that were escaped
    names = [name.encode("latin-1").decode() for name in names]
  except UnicodeError:
    pass
  return names[0], names[1:]

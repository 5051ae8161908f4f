"""Step-by-step instructions and stories, as CoMM's rows hold them, from JSON. Its own files are pickles: never loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.interleaving import interleave
from orthus_jax.data.sources.json_layout import JsonLayout
from orthus_jax.data.sources.json_shards import JsonShards
from orthus_jax.data.sources.layout import Draft, Options
from orthus_jax.data.sources.local_pictures import local_picture, picture_root
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_ROWS = "step_info"
_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin")


class Comm(JsonLayout):
  """A row makes one draft, of kind "interleaved": its title is given, its steps are to be learnt, in order."""

  name = "comm"
  usage = """Step-by-step instructions and stories, as CoMM's rows hold them, written out as JSON.

    DIR/train_data.jsonl       (annotations)   a row a line; or .json, one array
      {"data_id": "1", "title": "How to …", "step_info": [[{"type": "text", "content": "First …"},
        {"type": "image", "image_path": "wikihow/a.jpg"}], [{"type": "text", "content": "Then …"}]]}
    DIR/wikihow/a.jpg          (pictures)      or DIR/images/wikihow/a.jpg

CoMM's own files (train_data.pth) are pickles. A pickle can run anything when it is loaded, so none ever is: whoever trusts
one writes its rows out, `json.dump(torch.load("train_data.pth"), open("train_data.json", "w"))`.
"""
  takes = frozenset({"annotations", "pictures"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    pickles = _pickles(self.path)
    if pickles and (self.path.is_file() or not (options.annotations or json_files.files(self.path))):
      raise BadRequest(
          f"{str(pickles[0])!r} is a pickle, which is never loaded, as it can run anything: if you trust it, write its rows"
          " out as JSON (`orthus prepare --source=comm --help` says how)"
      )
    for file in pickles:
      self.remarks.add("pickles passed over, which are never loaded", file.name)
    file = json_files.only(self.path, options.annotations, _ROWS)
    self._open(JsonShards([file], _ROWS), file, _ROWS)
    self._root = options.pictures or picture_root(file.parent, (name for row in self._first for name in _named(row)))

  @classmethod
  def recognise(cls, path: Path) -> str:
    found = json_files.having(path, _ROWS)
    return f'{found[0].name} has rows of "{_ROWS}"' if found else ""

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.record(row)
    parts = [self._part(content) for content in _contents(record)]
    title = record.get("title")
    given: tuple[Text, ...] = ()
    if title is not None and title != "":
      check_text(title, "title")
      given = (Text(title),)
    return (Draft((*given, *interleave(parts, "\n")), self._rows.name(row), "interleaved"),)

  def _part(self, content: Mapping[str, Any]) -> str | Path:
    if content.get("type") == "text":
      if not isinstance(text := content.get("content"), str):
        raise BadRequest(f'a text\'s "content" must be a string, got {str(text)[:40]}')
      return text
    if content.get("type") == "image":
      return local_picture(self._root, content.get("image_path"), what='"image_path"')
    raise BadRequest(f'"type" must be text or image, got {content.get("type")!r}')


def _pickles(path: Path) -> list[Path]:
  there = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
  return [f for f in there if f.suffix.lower() in _PICKLES]


def _contents(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
  steps = record.get(_ROWS)
  if not isinstance(steps, list) or not all(isinstance(step, list) for step in steps):
    raise BadRequest(f'"{_ROWS}" must be a list of lists, one a step, got {str(steps)[:40]}')
  for step in steps:
    for content in step:
      if not isinstance(content, dict):
        raise BadRequest(f"what a step holds must be objects, got {str(content)[:40]}")
      yield content


def _named(record: Mapping[str, Any]) -> list[Any]:
  try:
    return [content.get("image_path") for content in _contents(record) if content.get("type") == "image"]
  except BadRequest:
    return []

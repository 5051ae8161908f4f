"""JourneyDB: pictures made by Midjourney, with their prompts, captions and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.json_lines import JsonLines, parse_object
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_TEXTS = {"caption": lambda r: (r.get("Task2") or {}).get("Caption"), "prompt": lambda r: r.get("prompt")}
_QUESTIONS = ("Style Relevant Questions and Answers", "Content Relevant Questions and Answers")


class JourneyDB(Layout):
  """A row with a caption or prompt makes the drafts of a pair; one with questions alone, as the test split has, one of kind
  "question", whose answers are learnt."""

  name = "journeydb"
  usage = """JourneyDB: a JSON-lines file of annotations, and folders of pictures.

    DIR/train_anno_realease_repath.jsonl   (annotations; or the only .jsonl there)
      {"img_path": "./000/a.jpg", "prompt": "…", "Task2": {"Caption": "…"}, "Task3": {…}}
    DIR/imgs/000/a.jpg                     or DIR/000/a.jpg, or from --pictures

    The text is the caption, else the prompt; --text=prompt has it the other way.
"""
  takes = frozenset({"text", "annotations", "pictures", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    if strange := [t for t in options.text if t not in _TEXTS]:
      raise BadRequest(f"journeydb has no text called {strange[0]}: choose caption, prompt or both in an order")
    self._texts = options.text or ("caption", "prompt")
    file = _annotations(self.path, options.annotations)
    self._rows = JsonLines(file, self._note)
    first = self._rows.record(0)
    if "img_path" not in first:
      raise BadRequest(f"{file} has no field img_path; its fields are {', '.join(first)}")
    folder = file.parent
    self._pictures = options.pictures or next((d for d in (folder / "imgs", folder) if (d / "000").is_dir()), folder)

  def _note(self, line: bytes) -> int:
    """Drafts of a row: of a pair, of questions, or one that is bad."""
    try:
      record = parse_object(line)
      return pair_count(self.options.pairs) if any(_text(record, t) for t in self._texts) else 1
    except BadRequest:
      return 1

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      rows = JsonLines(_annotations(path, ""), None)
      return f"{rows.file.name} has a field img_path" if "img_path" in rows.record(0) else ""
    except (BadRequest, OSError):
      return ""

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def drafts_per_row(self) -> np.ndarray:
    return self._rows.notes

  def place(self, row: int) -> tuple[str, str]:
    return self._rows.place(row)

  def drafts(self, row: int) -> Sequence[Draft]:
    record = self._rows.record(row)
    name = record.get("img_path")
    if isinstance(name, str):  # as the second published form has it: "000/./imgs/a.jpg"
      name = name.replace("/./imgs/", "/")
    picture = local_picture(self._pictures, name, what="its img_path")
    document = f"{self._rows.file.name}:{self._rows.lines[row]}"
    for which in self._texts:
      if text := _text(record, which):
        check_text(text)
        return pair(text, picture, self.options.pairs, name=document, meta={"text": which})
    if turns := _questions(record):
      segments = (s for question, answer in turns for s in (Text(question), Text(answer, learn=True)))
      return (Draft((Picture(picture), *segments), document, "question"),)
    raise BadRequest("it has no caption, prompt or question")

  def fields(self) -> Mapping[str, str]:
    return {k: "the picture's path" if k == "img_path" else type(v).__name__ for k, v in self._rows.record(0).items()}


def _annotations(path: Path, name: str) -> Path:
  if path.is_file():
    return path
  if name:
    return path / name
  found = sorted(path.glob("*.jsonl")) if path.is_dir() else []
  if len(found) != 1:
    raise BadRequest(f"{path} holds {len(found)} .jsonl files: name the one of annotations by --annotations")
  return found[0]


def _text(record: dict[str, Any], which: str) -> str:
  try:
    value = _TEXTS[which](record)
  except AttributeError as e:
    raise BadRequest("its Task2 must be an object") from e
  return value.strip() if isinstance(value, str) else ""


def _questions(record: dict[str, Any]) -> list[tuple[str, str]]:
  """(question, answer) of all multiple-choice questions of a row, the answer spelled out."""
  task, turns = record.get("Task3") or {}, []
  if not isinstance(task, dict):
    raise BadRequest("its Task3 must be an object")
  for key in _QUESTIONS:
    for item in task.get(key) or ():
      if not isinstance(item, dict) or not isinstance(item.get("Question"), str):
        raise BadRequest(f"a question of its {key} has no text")
      options, answer = item.get("Options"), item.get("Answer")
      spelled = options.get(answer) if isinstance(options, dict) else answer
      if not isinstance(spelled, str) or not spelled.strip() or not item["Question"].strip():
        raise BadRequest(f"the answer {answer!r} is none of the options of its question")
      turns.append((item["Question"].strip(), spelled.strip()))
  return turns

"""JourneyDB: pictures made by Midjourney, with their prompts, captions and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.json_lines import JsonLines, parse_object
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.table_kinds import columns_of
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_TEXTS = {"caption": lambda r: (r.get("Task2") or {}).get("Caption"), "prompt": lambda r: r.get("prompt")}
_QUESTIONS = ("Style Relevant Questions and Answers", "Content Relevant Questions and Answers")
_LETTERED = re.compile(r"\s*([A-Z])\s*[.:)]\s*(.*)", re.DOTALL)


class JourneyDB(Layout):
  """A row with a caption or prompt makes the drafts of a pair; one with questions alone, as the test split has, one of kind
  "question", whose answers are learnt."""

  name = "journeydb"
  usage = """JourneyDB: a JSON-lines file of annotations, and folders of pictures.

    DIR/train_anno_realease_repath.jsonl   (annotations; or the only .jsonl there, or in DIR/train or DIR/data/train)
      {"img_path": "./000/a.jpg", "prompt": "…", "Task2": {"Caption": "…"}, "Task3": {…}}
    DIR/imgs/000/a.jpg                     or DIR/000/a.jpg, or from --pictures

    The text is the caption, else the prompt; --text=prompt has it the other way.
"""
  takes = frozenset({"text", "annotations", "pictures", "pairs", "split"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    if strange := [t for t in options.text if t not in _TEXTS]:
      raise BadRequest(f"journeydb has no text called {strange[0]}: choose caption, prompt or both in an order")
    self._texts = options.text or ("caption", "prompt")
    file = _annotations(self.path, options.annotations, options.split)
    if "img_path" not in (fields := columns_of(file)):
      raise BadRequest(f"{file} has no field img_path; its fields are {', '.join(fields)}")
    self._rows = JsonLines(file, self._note)
    imgs = file.parent / "imgs"
    self._pictures = options.pictures or (imgs if imgs.is_dir() else file.parent)

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
      file = _annotations(path, "", "train")
      return f"{file.name} has a field img_path" if "img_path" in columns_of(file) else ""
    except (BadRequest, OSError):
      return ""

  def __len__(self) -> int:
    return len(self._rows)

  def row_files(self) -> Sequence[Path]:
    return [self._rows.file]

  @property
  def drafts_per_row(self) -> np.ndarray:
    return self._rows.notes

  def place(self, row: int) -> tuple[str, str]:
    return self._rows.place(row)

  def drafts(self, row: int) -> Sequence[Draft]:
    record = self._rows.record(row)
    picture = self._picture(record.get("img_path"))
    document = self._rows.name(row)
    for which in self._texts:
      if text := _text(record, which):
        check_text(text)
        return pair(text, picture, self.options.pairs, name=document, meta={"text": which})
    if any(_text(record, which) for which in _TEXTS):
      raise BadRequest(f"it has no {' or '.join(self._texts)}")
    if turns := _questions(record):
      segments = (s for question, answer in turns for s in (Text(question), Text(answer, learn=True)))
      return (Draft((Picture(picture), *segments), document, "question"),)
    raise BadRequest("it has no caption, prompt or question")

  def _picture(self, name: Any) -> Path:
    """A picture's file, of what its path may mean: "./000/a.jpg"; "x/./imgs/000/a.jpg", "000/./imgs/a.jpg", "imgs/a.jpg"."""
    before, _, after = f"./{name}".rpartition("/./imgs/") if isinstance(name, str) else ("", "", name)
    if not before:
      files = [local_picture(self._pictures, name, what="its img_path")]
      if files[0].parts[: len(self._pictures.parts) + 1] == (*self._pictures.parts, "imgs"):
        files.append(self._pictures / files[0].relative_to(self._pictures / "imgs"))
    else:
      names = [after] if "/" in after else [f"{before.rpartition('/')[2]}/{after}", after]
      files = [local_picture(self._pictures, n, what="its img_path") for n in names]
    return files[0] if len(files) == 1 else next((f for f in files if f.is_file()), files[0])

  def fields(self) -> Mapping[str, str]:
    first = next(iter(json_files.first_rows(self._rows)), {})
    return {k: "the picture's path" if k == "img_path" else type(v).__name__ for k, v in first.items()}


def _annotations(path: Path, name: str, split: str) -> Path:
  """The file of rows: named by the user, or the only one there, or of several the one whose paths were mended ("repath").

  Raises:
    BadRequest: there is none, or more than one could be meant.
  """
  if path.is_file():
    return path
  if name:
    if not (path / name).is_file():
      raise BadRequest(f"there is no {str(path / name)!r}")
    return path / name
  places = [path / "data" / split, path / split, *([path] if split == "train" else [])]
  found = next((f for f in (sorted(p.glob("*.jsonl")) for p in places) if f), [])
  if len(found) > 1:
    found = [f for f in found if "repath" in f.name] or found
  if len(found) != 1:
    raise BadRequest(f"{path} holds {len(found)} .jsonl files of the split {split!r}: name one by --annotations")
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
    if not isinstance(items := task.get(key) or [], list):
      raise BadRequest(f"its {key} must be a list")
    for item in items:
      if not isinstance(item, dict) or not isinstance(item.get("Question"), str):
        raise BadRequest(f"a question of its {key} has no text")
      answer = _answer(item.get("Options"), item.get("Answer"))
      if not item["Question"].strip():
        raise BadRequest(f"a question of its {key} has no text")
      turns.append((item["Question"].strip(), answer))
  return turns


def _answer(options: Any, answer: Any) -> str:
  """An answer, spelled out where it is the letter of an option.

  Raises:
    BadRequest: it is none of them.
  """
  if isinstance(options, list) and isinstance(answer, str):  # "A: oil", or the first for A
    lettered = {m[1]: m[2] for o in options if isinstance(o, str) and (m := _LETTERED.match(o))}
    options = lettered or {chr(ord("A") + i): o for i, o in enumerate(options)}
  spelled = answer
  if isinstance(options, dict):
    spelled = answer if answer in options.values() else options.get(answer) if isinstance(answer, str) else None
  if not isinstance(spelled, str) or not spelled.strip():
    raise BadRequest(f"the answer {answer!r} is none of the options of its question")
  return spelled.strip()

"""Benchmarks that ask about pictures: MME, POPE, VQAv2, GQA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
from pathlib import Path
from typing import Any

from orthus_jax import files
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Text, document
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import mme, pope, reading
from orthus_jax.evaluation.runs import prompts
from orthus_jax.evaluation.runs.prompts import Template
from orthus_jax.evaluation.runs.task import Asking, ByLine, Item

MME_SUBTASKS = tuple(s for group in mme.SUBTASKS.values() for s in group)
_PICTURES = (".jpg", ".png", ".jpeg")


def _pictures(data: Path, images: Path | None, *names: str) -> Path:
  """Where a benchmark's pictures lie: where --images says, or in a folder of their usual name."""
  if images is not None:
    return images
  base = data if data.is_dir() else data.parent
  return next((base / n for n in names if (base / n).is_dir()), base)


class _Asked(Asking):
  """Questions, each about one picture that stands ahead of it."""

  def __init__(self, template: Template):
    self._template = template

  def _item(self, name: str, path: Path, question: str, **facts: Any) -> Item:
    return Item(name, functools.partial(self._prompt, path, question), {"question": question, **facts}, path)

  def _prompt(self, path: Path, question: str) -> Document:
    words = prompts.question(self._template, self._words(question), end="short")
    return document(images_lib.load_image(path), Text(words))

  def _words(self, question: str) -> str:
    """A question as it is asked, ahead of what the template adds."""
    return question


class Mme(ByLine, _Asked):
  """SUBTASK.txt, four columns: picture, question, truth, answer.

  Read from the release: a folder a subtask, whose pictures have two questions each in a text file of their name; both may lie
  in folders of their own, images and questions_answers_YN.
  """

  _OWN_END = " Please answer yes or no."

  def __init__(self, data: Path, template: Template, images: Path | None = None):
    super().__init__(template)
    if template.ends:  # what earlier versions asked otherwise
      self.protocol = {"question_end": f"{prompts.ENDS['short'].strip()} (in the place of:{self._OWN_END})"}
    home = next((p for p in (data, data / "MME_Benchmark", data / "MME_Benchmark_release_version") if _subtasks(p)), None)
    if home is None:
      raise BadRequest(f"{data} has no folder of MME's ({', '.join(MME_SUBTASKS[:3])}, …): name the release's")
    self._home = home
    missing = [s for s in MME_SUBTASKS if s not in _subtasks(home)]
    if missing:
      raise BadRequest(f"{home} lacks {len(missing)} of MME's {len(MME_SUBTASKS)} subtasks: {', '.join(missing)}")
    self.sources = [path for subtask in MME_SUBTASKS for path in self._files(subtask)]

  def _files(self, subtask: str) -> list[Path]:
    folder = self._home / subtask
    inner = folder / "questions_answers_YN"
    return sorted((inner if inner.is_dir() else folder).glob("*.txt"))

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    return [item for subtask in MME_SUBTASKS for path in self._files(subtask) for item in self._questions(subtask, path)]

  def _words(self, question: str) -> str:
    """One end takes the place of the other, as lmms-eval has it."""
    return question.replace(self._OWN_END, "") if self._template.ends else question

  def _questions(self, subtask: str, path: Path) -> Iterator[Item]:
    folder = path.parent.with_name("images") if path.parent.name == "questions_answers_YN" else path.parent
    shown = next((p for e in _PICTURES if (p := folder / f"{path.stem}{e}").is_file()), folder / f"{path.stem}.jpg")
    lines = [line for line in reading.lines(path) if line.strip()]
    if len(lines) != 2:  # the tool takes two lines for a picture, whatever their names
      raise BadRequest(f"{path} holds {len(lines)} questions, where MME has two a picture: name the release's folder")
    for number, line in enumerate(lines, 1):
      question, tab, truth = line.strip().rpartition("\t")
      if not tab or truth.strip().lower() not in ("yes", "no"):
        raise BadRequest(f"{path}:{number} isn't a question, a tab and Yes or No")
      name, facts = f"{subtask}/{path.stem}/{number}", dict(part=subtask, truth=truth.strip(), shown=shown.name)
      yield self._item(name, shown, question, **facts)

  def id_of(self, row: Mapping[str, Any]) -> str:
    return f"{row['subtask']}/{Path(row['image']).stem}/{2 - row['line'] % 2}"  # two lines a picture

  def file(self, out: Path, part: str) -> Path:
    return out / "results" / f"{part}.txt"

  def line(self, item: Item, answer: str) -> str:
    question = item.facts["question"].replace("\t", " ")
    return "\t".join((item.facts["shown"], question, item.facts["truth"], " ".join(answer.split())))


def _subtasks(folder: Path) -> list[str]:
  return [s for s in MME_SUBTASKS if (folder / s).is_dir()]


class Pope(ByLine, _Asked):
  """A file of JSON lines a split, with `question` and `answer`."""

  def __init__(self, data: Path, template: Template, images: Path | None = None):
    super().__init__(template)
    self.sources = sorted(data.rglob("coco_pope_*.json")) if data.is_dir() else [data]
    if not self.sources:
      raise BadRequest(f"{data} has no coco_pope_SPLIT.json: name the folder of POPE's questions")
    if len(folders := sorted({str(p.parent) for p in self.sources})) > 1:
      raise BadRequest(f"{data} has POPE's questions in {len(folders)} folders, {folders[0]} and {folders[1]}: name one")
    self._split = {path: split for split, path in pope.by_split(self.sources).items()}
    self._images = _pictures(data, images, "val2014", "images")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    found = []
    for path in self.sources:
      for number, row in enumerate(reading.json_lines(path), 1):
        what = "a question of POPE's (question_id, image, text, label)"
        question, shown = (reading.field(row, n, str, what, path, number) for n in ("text", "image"))
        facts = dict(part=self._split[path], row=row)
        found.append(self._item(f"{path.stem}/{number}", self._images / Path(shown).name, question, **facts))
    return found

  def file(self, out: Path, part: str) -> Path:
    return out / "answers" / f"{part}.json"

  def line(self, item: Item, answer: str) -> str:
    asked = item.facts["row"].get("question_id")
    return json.dumps({"question_id": asked, "question": item.facts["question"], "answer": answer}, ensure_ascii=False)

  def id_of(self, row: Mapping[str, Any]) -> str:
    stem = next(path.stem for path, split in self._split.items() if split == row["split"])
    return f"{stem}/{row['line']}"


class Vqav2(_Asked):
  """One JSON list of `question_id` and `answer`, named as the evaluation server wants it."""

  def __init__(self, data: Path, template: Template, images: Path | None = None):
    super().__init__(template)
    self.sources = [reading.only(data, "v2_OpenEnded_mscoco_*_questions.json", "VQAv2's questions", deep=True)]
    self._split = self.sources[0].name.removeprefix("v2_OpenEnded_mscoco_").removesuffix("_questions.json")
    self._images = _pictures(data, images, self._folder, "images")

  @property
  def _folder(self) -> str:
    return "test2015" if self._split.startswith("test") else self._split

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    path, what, found = self.sources[0], "VQAv2's questions", []
    rows = reading.field(reading.whole_json(path, dict, what), "questions", list, what, path, "", entry=True)
    for number, row in enumerate(rows):
      name, shown = (reading.field(row, n, int, what, path, number, entry=True) for n in ("question_id", "image_id"))
      question = reading.field(row, "question", str, what, path, number, entry=True)
      found.append(self._item(str(name), self._images / f"COCO_{self._folder}_{shown:012d}.jpg", question))
    return found

  def finish(self, out: Path) -> Path:
    answers = self.answers(out)
    rows = [{"question_id": int(i.id), "answer": answers[i.id].strip()} for i in self.items if i.id in answers]
    path = out / f"v2_OpenEnded_mscoco_{self._split}_orthus_results.json"
    files.write_text(path, json.dumps(rows, ensure_ascii=False))
    return path


class Gqa(_Asked):
  """One JSON list of `questionId` and `prediction`, in lower case and without full stops at the end, as LLaVA converts them."""

  def __init__(self, data: Path, template: Template, images: Path | None = None):
    super().__init__(template)
    self.sources = [reading.only(data, "*_questions.json", "GQA's balanced questions of a split", deep=True)]
    self._split = self.sources[0].name.removesuffix("_questions.json")
    self._images = _pictures(data, images, "images", "allImages")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    path, what, found = self.sources[0], "GQA's questions by id", []
    for name, row in reading.whole_json(path, dict, what).items():
      shown, question = (reading.field(row, n, str, what, path, name, entry=True) for n in ("imageId", "question"))
      if row.get("isBalanced", True):
        found.append(self._item(name, self._images / f"{shown}.jpg", question))
    return found

  def finish(self, out: Path) -> Path:
    answers = self.answers(out)
    rows = [
        {"questionId": i.id, "prediction": answers[i.id].strip().rstrip(".").lower()} for i in self.items if i.id in answers
    ]  # fmt: skip
    path = out / f"{self._split}_predictions.json"
    files.write_text(path, json.dumps(rows, ensure_ascii=False))
    return path

"""Data sets as TFDS keeps them, read at random and without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.text_columns import USUAL
from orthus_jax.data.sources.texts import check_text
from orthus_jax.data.sources.tfds_records import Feature, Records, folders
from orthus_jax.errors import BadRequest

_USUAL = (*(f"captions/{name}" for name in USUAL), *USUAL, "label")
_QUESTION, _ANSWERS = "question", ("answer", "answers", "multiple_choice_answer")


class Tfds(Layout):
  """A record makes the drafts of a pair of its picture and its first text; or one of kind "question", where there is a
  question and an answer and no other text is asked for."""

  name = "tfds"
  usage = """A TFDS data set in ArrayRecord or Parquet format: --source=tfds:NAME, tfds:NAME/CONFIG, either with :VERSION.

    DIR/coco_captions/2014/1.1.0/features.json     DIR is TFDS's data_dir; the folder itself will do, without NAME
    DIR/coco_captions/2014/1.1.0/coco_captions-train.array_record-00000-of-00064

The picture is the feature "image", or the first one. The text is "captions/text", "caption", "text", … or chosen by --text;
classes are told by their names; of several texts the first is read. TFRecord files can't be read at random: convert them.
"""
  takes = frozenset({"text", "pairs", "split", "argument"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    if not self.path.is_dir():
      raise BadRequest(f"there is no folder {str(self.path)!r}; give TFDS's data_dir, or a data set's own folder")
    found = folders(self.path, options.argument)
    if len(found) != 1:
      shown = ", ".join(str(f.relative_to(self.path)) for f in found[:5])
      what = f"several data sets ({shown}): say which by tfds:NAME/CONFIG" if found else "no features.json of such a data set"
      raise BadRequest(f"{str(self.path)!r} holds {what}" + (f" called {options.argument}" if options.argument else ""))
    self.path = found[0]
    self._records = Records(found[0], options.split)
    self.broken += self._records.broken
    features = self._records.features
    images = [n for n, f in features.items() if f.kind == "image" and not f.many]
    texts = [n for n, f in features.items() if f.kind in ("text", "class") and f.many < 2]
    self._question: tuple[str, ...] = ()
    if not options.text and _QUESTION in texts:
      self._question = tuple(n for n in _ANSWERS if n in texts)[:1]
    self._text = tuple(n for n in options.text or _USUAL if n in texts)
    if not images or not (self._text or self._question):
      raise BadRequest(
          f"{str(self.path)!r} needs an image and a text{' called ' + ', '.join(options.text) if options.text else ''};"
          f" it has {', '.join(f'{n} ({f})' for n, f in features.items())}: choose the text by --text"
      )
    self._image = "image" if "image" in images else images[0]
    for name in (*self._question, *([] if self._question else self._text[:1])):
      if features[name].many:
        self.remarks.add("features of several texts a record, of which the first is read", name)

  @classmethod
  def recognise(cls, path: Path) -> str:
    found = folders(path, "") if path.is_dir() else []
    return f"TFDS' features.json in {', '.join(f.relative_to(path).as_posix() for f in found[:3])}" if found else ""

  def __len__(self) -> int:
    return len(self._records)

  @property
  def drafts_per_row(self) -> int:
    return 1 if self._question else pair_count(self.options.pairs)

  def place(self, row: int) -> tuple[str, str]:
    return self._records.place(row)

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._records.record(row)
    shown = next(iter(record.get(self._image, ())), b"")
    if not isinstance(shown, bytes) or not shown:
      raise BadRequest(f"its {self._image} is empty")
    name = ":".join(self.place(row)).replace("record ", "")
    if self._question:
      question, answer = (self._words(record, (n,)) for n in (_QUESTION, *self._question))
      return (Draft((Picture(shown), Text(question), Text(answer, learn=True)), name, "question"),)
    return pair(self._words(record, self._text), shown, self.options.pairs, name=name)

  def fields(self) -> Mapping[str, str]:
    told = {self._image: " (the picture)", **dict.fromkeys(self._question or self._text[:1], " (the text)")}
    return {name: f"{feature}{told.get(name, '')}" for name, feature in self._records.features.items()}

  def _words(self, record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first text with words of the first feature that has one."""
    for name in names:
      for value in record.get(name, ()):
        if text := _text(value, self._records.features[name], name).strip():
          check_text(text)
          return text
    raise BadRequest(f"it has no text in {', '.join(names)}")


def _text(value: Any, feature: Feature, name: str) -> str:
  if feature.kind == "class":
    if not 0 <= value < len(feature.names):
      raise BadRequest(f"its {name} is {value}, and there are {len(feature.names)} classes")
    return feature.names[value].replace("_", " ")
  try:
    return value.decode()
  except UnicodeDecodeError as e:
    raise BadRequest(f"its {name} isn't UTF-8") from e

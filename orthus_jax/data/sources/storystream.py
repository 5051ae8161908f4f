"""Stories told in captions and pictures, as StoryStream's JSON lines hold them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.json_layout import JsonLayout
from orthus_jax.data.sources.json_lines import JsonLines
from orthus_jax.data.sources.layout import Draft, Options, Picture
from orthus_jax.data.sources.local_pictures import local_picture, picture_root
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_FIELDS = ("images", "captions")


class StoryStream(JsonLayout):
  """A story makes one draft, of kind "story": caption, picture, caption, … in order. The first caption is given, as what a
  story is asked for by; all that follows is to be learnt."""

  name = "storystream"
  usage = """Stories told in captions and pictures, as StoryStream's JSON lines hold them.

    DIR/train.jsonl        (annotations)   a story a line; val.jsonl is read by --split=val
      {"id": 0, "images": ["000001/a.jpg", "000001/b.jpg"], "captions": ["George …", "He …"], "orders": [0, 1]}
    DIR/000001/a.jpg       (pictures)      or DIR/images/000001/a.jpg

"orders" may be absent: the frames are in order then. Ids may repeat.
"""
  takes = frozenset({"annotations", "pictures", "split"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    name, of_split = options.annotations, f"{options.split}.jsonl"
    if not name and self.path.is_dir() and ((self.path / of_split).is_file() or options.split != "train"):
      name = of_split
      for other in json_files.files(self.path):
        if other.name != name:
          self.remarks.add("files of other splits passed over", other.name)
    file = json_files.only(self.path, name, *_FIELDS)
    self._open(JsonLines(file), file, *_FIELDS)
    named = [r["images"] for r in self._first if isinstance(r.get("images"), list)]
    self._root = options.pictures or picture_root(file.parent, itertools.chain.from_iterable(named))

  @classmethod
  def recognise(cls, path: Path) -> str:
    found = [f for f in json_files.having(path, *_FIELDS) if not json_files.is_array(f)]
    return f'{found[0].name} has rows of "images" and "captions"' if found else ""

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.record(row)
    images, captions, orders = (record.get(key) for key in (*_FIELDS, "orders"))
    if not isinstance(images, list) or not isinstance(captions, list) or not images:
      raise BadRequest(f'a story needs lists of "images" and "captions", this one has {", ".join(record) or "nothing"}')
    if len(images) != len(captions):
      raise BadRequest(f"it has {len(images)} images and {len(captions)} captions; there must be as many")
    frames = list(zip(captions, images))
    segments: list[Text | Picture] = []
    for place in range(len(frames)) if orders is None else _order(orders, len(frames)):
      caption, image = frames[place]
      check_text(caption, "captions")
      segments += [Text(caption, learn=bool(segments)), Picture(local_picture(self._root, image), learn=True)]
    return (Draft(tuple(segments), self._rows.name(row), "story"),)


def _order(orders: Any, frames: int) -> list[int]:
  """Places of frames, sorted by the number that each has.

  Raises:
    BadRequest: there aren't as many different numbers.
  """
  if not isinstance(orders, list) or any(type(n) is not int for n in orders):
    raise BadRequest(f'"orders" must be a list of whole numbers, got {str(orders)[:40]}')
  if len(orders) != frames or len(set(orders)) != frames:
    raise BadRequest(f'"orders" must have {frames} different numbers, one for each image, got {str(orders)[:40]}')
  return sorted(range(frames), key=orders.__getitem__)

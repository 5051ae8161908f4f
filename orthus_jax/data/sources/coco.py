"""COCO's captions: one JSON file of pictures and of captions that name them."""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from orthus_jax.data.sources.layout import Draft, Layout, Options, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.strings import Strings
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_UNKNOWN, _TWICE = -1, -2  # in the place of a picture's number


class Coco(Layout):
  """Each caption is a row, and makes the drafts of a pair; several tell of one picture."""

  name = "coco"
  usage = """COCO's captions, a JSON file, and a folder of pictures.

    annotations/captions_train2017.json   PATH, or PATH's (annotations; or by --split)
      {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"image_id": 9, "caption": "…"}]}
    train2017/000000000009.jpg            the folder of the file's name beside it, or --pictures
"""
  takes = frozenset({"annotations", "pictures", "pairs", "split"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    self._file = _captions(self.path, options)
    try:
      content = json.loads(self._file.read_bytes().decode("utf-8-sig"))
    except OSError as e:
      raise BadRequest(f"{self._file} can't be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
      raise BadRequest(f"{self._file} isn't JSON: {e}") from e
    fields = content if isinstance(content, dict) else {}
    captions, pictures = fields.get("annotations"), fields.get("images")
    if not isinstance(captions, list) or not isinstance(pictures, list) or not captions:
      found = ", ".join(fields) if fields else f"a {type(content).__name__}"
      raise BadRequest(f"{self._file} has no lists images and annotations with captions in them; it holds {found}")
    if isinstance(captions[0], dict) and "caption" not in captions[0]:
      raise BadRequest(
          f"the annotations of {self._file} have no captions but {', '.join(captions[0])}: give captions_….json"
      )
    names, twice = _names(pictures)
    # All in a few buffers: a list of a million dicts takes a gigabyte, in each process that reads.
    self._numbers, order = array.array("i"), dict[Any, int]()

    def rows() -> Iterator[str]:
      for caption in captions:
        row = caption if isinstance(caption, dict) else {}
        image = row.get("image_id") if isinstance(row.get("image_id"), (int, str)) else None
        known = image in names and image not in twice
        self._numbers.append(order.setdefault(image, len(order)) if known else _TWICE if image in twice else _UNKNOWN)
        yield json.dumps([row.get("id"), image, row.get("caption")])

    self._captions = Strings(rows())
    self._names = Strings(json.dumps(names[i]) for i in order)
    self._pictures = options.pictures or self._folder()
    if silent := len(names) - len(order) - len(twice):
      first = next(n for i, n in names.items() if i not in order and i not in twice)
      self.remarks.add("pictures without a caption", str(first), silent)

  def _folder(self) -> Path:
    """The folder of pictures that goes with captions_NAME.json."""
    name = self._file.stem.removeprefix("captions_")
    beside = [self._file.parent.parent / name, self._file.parent / name, self._file.parent.parent / "images" / name]
    return next((f for f in beside if f.is_dir()), self._file.parent)

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      file = _captions(path, Options())
    except BadRequest:
      return ""
    with file.open("rb") as f:
      head = f.read(1 << 16)
    known = file.name.startswith("captions_") or b'"caption"' in head
    return f"{file.name} has images and captions" if known and head.lstrip(b"\xef\xbb\xbf \n\r\t")[:1] == b"{" else ""

  def __len__(self) -> int:
    return len(self._captions)

  def row_files(self) -> Sequence[Path]:
    return [self._file]

  @property
  def drafts_per_row(self) -> int:
    return pair_count(self.options.pairs)

  def place(self, row: int) -> tuple[str, str]:
    return str(self._file), f"caption {row}"

  def drafts(self, row: int) -> Sequence[Draft]:
    number, image, caption = json.loads(self._captions[row])
    if (at := self._numbers[row]) < 0:
      raise BadRequest(f"it names the picture {image!r}, which {'is there twice' if at == _TWICE else 'is not'} among images")
    check_text(caption, "caption")
    picture = local_picture(self._pictures, json.loads(self._names[at]), what="its file_name")
    name = f"{self._file.name}:{number if number is not None else row}"
    return pair(caption.strip(), picture, self.options.pairs, name=name, meta={"image_id": image})

  def fields(self) -> Mapping[str, Any]:
    return {"caption": "the text", "image_id": f"names a picture of {self._pictures}"}


def _names(pictures: Sequence[Any]) -> tuple[dict[Any, Any], set[Any]]:
  """Names of files by id, and ids that stand for several."""
  names: dict[Any, Any] = {}
  twice = set()
  for p in pictures:
    if isinstance(p, dict) and isinstance(p.get("id"), (int, str)):
      if names.setdefault(p["id"], p.get("file_name")) != p.get("file_name"):
        twice.add(p["id"])
  return names, twice


def _captions(path: Path, options: Options) -> Path:
  """The file of captions at a place.

  Raises:
    BadRequest: there is none, or more than one that could be meant.
  """
  if path.is_file() and path.suffix.lower() == ".json":
    return path
  if options.annotations:
    return path / options.annotations
  found = sorted([*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")]) if path.is_dir() else []
  chosen = [f for f in found if f.stem.removeprefix("captions_").startswith(options.split)]
  if options.split == "train" and len(found) == 1:
    chosen = found
  if len(chosen) != 1:
    names = ", ".join(f.name for f in found)
    what = f"has {len(chosen)} of the split {options.split!r} among {names}" if found else "and its annotations hold none"
    raise BadRequest(f"of files such as captions_train2017.json, {path} {what}; name one by --annotations")
  return chosen[0]

"""Interleaved web documents, as MMC4's JSON lines hold them, with pictures from a local folder."""

from __future__ import annotations

from pathlib import Path

from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.interleaving import interleave
from orthus_jax.data.sources.json_layout import JsonLayout
from orthus_jax.data.sources.json_shards import JsonShards
from orthus_jax.data.sources.layout import Draft, Layout, Options
from orthus_jax.data.sources.picture_store import USAGE, PictureStore
from orthus_jax.errors import BadRequest

_FIELDS = ("text_list", "image_info")
_PACKED = (".zip", ".gz", ".bz2", ".xz", ".zst")


class Mmc4(JsonLayout):
  """A web page makes one draft, of kind "interleaved", of which everything is to be learnt.

  A picture stands before the sentence that it matches; several of one sentence in the order in which they are listed.
  Sentences without a picture between them are joined by spaces. A picture that isn't in the folder is left out; a page that
  has no picture left, or no text, is a bad row.
  """

  name = "mmc4"
  usage = (
      """Interleaved web documents, as MMC4's JSON lines hold them, unpacked.

    DIR/docs_shard_0_v2.jsonl     (annotations: one of several)   a page a line:
      {"text_list": ["One.", "Two."], "image_info": [
        {"image_name": "b56b.jpg", "raw_url": "https://a.b/c.jpg", "matched_text_index": 1}]}
    DIR/images/b56b.jpg           by its name, or else by its address:

"""
      + USAGE
  )
  takes = frozenset({"annotations", "pictures"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    self._open(JsonShards(_files(self), "text_list"), self.path, *_FIELDS)
    self._store = PictureStore(self.name, self.path if self.path.is_dir() else self.path.parent, options, self.remarks)

  @classmethod
  def recognise(cls, path: Path) -> str:
    found = json_files.having(path, *_FIELDS)
    return f'{found[0].name} has rows of "text_list" and "image_info"' if found else ""

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.record(row)
    sentences, images = (record.get(key) for key in _FIELDS)
    if not isinstance(sentences, list) or not isinstance(images, list):
      raise BadRequest(f'a page needs lists "text_list" and "image_info"; this one has {", ".join(record) or "nothing"}')
    if any(not isinstance(sentence, str) for sentence in sentences):
      raise BadRequest('"text_list" must be a list of strings')
    shown: dict[int, list[Path | None]] = {}
    for image in images:
      if not isinstance(image, dict):
        raise BadRequest(f'"image_info" must be a list of objects, got {str(image)[:40]}')
      place = image.get("matched_text_index")
      if type(place) is not int or not 0 <= place < len(sentences):
        raise BadRequest(f'"matched_text_index" must be one of the {len(sentences)} sentences, from 0; got {place!r}')
      name = image.get("image_name")
      if not isinstance(name, str | None):
        raise BadRequest(f'"image_name" must be a string, got {name!r}')
      shown.setdefault(place, []).append(self._store.find(image.get("raw_url") or name, name or ""))
    parts = [part for n, sentence in enumerate(sentences) for part in (*shown.get(n, ()), sentence)]
    return (Draft(interleave(parts, " "), self._rows.name(row), "interleaved"),)


def _files(layout: Layout) -> list[Path]:
  """The files of rows; those beside them are counted.

  Raises:
    BadRequest: there is none, or only packed ones.
  """
  path = layout.path
  if layout.options.annotations:
    return [json_files.only(path, layout.options.annotations)]
  if path.is_file() and path.suffix.lower() not in _PACKED:
    return [path]
  there = [path] if path.is_file() else sorted(path.glob("[!.]*"))
  if files := [f for f in there if f.suffix.lower() in (".jsonl", ".json")]:
    names = {f.name for f in files}
    for f in there:
      if f.suffix.lower() in _PACKED:
        what = "beside what they were unpacked to" if f.stem in names else "which can't be read until they are unpacked"
        layout.remarks.add(f"packed files passed over {what}", f.name)
    return files
  if packed := [f.name for f in there if f.suffix.lower() in _PACKED]:
    raise BadRequest(f"{packed[0]} in {str(path)!r} is packed, and rows are read at random: unpack it (unzip, gunzip)")
  raise BadRequest(f"there is no .jsonl file at {str(path)!r}; give one, or a folder that holds some")

"""Stories as StoryStream's JSON lines hold them."""

import json
import pickle
import re

import numpy as np
import pytest

from orthus_jax.data.images import save_png
from orthus_jax.data.look import recognised
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.storystream import StoryStream
from orthus_jax.errors import BadRequest

FRAMES = {"images": ["1/0.png", "1/1.png", "1/2.png"], "captions": ["zero", "one", "two"]}
SHUFFLED = {"id": 0, "images": ["1/2.png", "1/0.png", "1/1.png"], "captions": ["two", "zero", "one"], "orders": [9, 1, 4]}


@pytest.fixture
def folder(tmp_path):
  for n in range(3):
    save_png(tmp_path / "1" / f"{n}.png", np.full((8, 8, 3), n, np.uint8))
  return tmp_path


def write(folder, *rows, name="train.jsonl"):
  (folder / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
  return folder


def test_captions_and_pictures_in_order(folder):
  write(folder, {"id": 0, **FRAMES}, SHUFFLED)
  for place in (folder, folder / "train.jsonl"):
    source = LayoutSource(pickle.loads(pickle.dumps(StoryStream(place))), resolution=8)
    for document in (source[0], source[1]):
      told = [s.text if hasattr(s, "text") else int(s.pixels.max()) for s in document.segments]
      assert told == ["zero", 0, "one", 1, "two", 2] and document.kind == "story"
      assert [s.learn for s in document.segments] == [False] + [True] * 5
    assert source[0].id != source[1].id and list(recognised(place)) == ["storystream"]


FAULTS = {
    "3 images and 2 captions": {**FRAMES, "captions": ["a", "b"]},
    "needs lists of": {**FRAMES, "captions": "abc"},
    'lists of "images" and "captions", this one has id': {"id": 3},
    "this one has images, captions": {"images": [], "captions": []},
    "must have 3 different numbers, one for each image, got [0, 1]": {**FRAMES, "orders": [0, 1]},
    "must have 3 different numbers, one for each image, got [0, 1, 1]": {**FRAMES, "orders": [0, 1, 1]},
    "must be a list of whole numbers": {**FRAMES, "orders": [0, True, 2]},
    "its text is empty": {**FRAMES, "captions": ["a", "", "c"]},
    '"captions" must be a string': {**FRAMES, "captions": ["a", None, "c"]},
    "doesn't exist": {**FRAMES, "images": ["1/0.png", "1/1.png", "1/3.png"]},
    "lies outside": {**FRAMES, "images": ["1/0.png", "1/1.png", "/1/2.png"]},
    "it isn't JSON": str(FRAMES),  # as the project's own generator writes it
}


def test_bad_rows(folder, caplog):
  write(folder, FRAMES, *FAULTS.values())
  write(folder, "{", "[1]", FRAMES, name="val.jsonl")
  assert len(StoryStream(folder, Options(split="val"))) == 3, "the first rows being bad is no reason to refuse all"
  source = LayoutSource(StoryStream(folder), resolution=8, max_bad_share=1)
  assert [source[i] is None for i in range(len(source))] == [False] + [True] * len(FAULTS)
  for row, why in enumerate(FAULTS, start=1):
    with pytest.raises(BadRequest, match=re.escape(why)):
      source._read(source.layout.drafts(row)[0], source._picture)


def test_files_and_refusals(folder, tmp_path_factory):
  write(folder, FRAMES)
  write(folder, FRAMES, FRAMES, name="val.jsonl")
  layout = StoryStream(folder)
  assert len(layout) == 1 and layout.remarks.lines() == ["files of other splits passed over: 1 (val.jsonl)"]
  assert len(StoryStream(folder, Options(split="val"))) == 2
  assert len(StoryStream(folder, Options(annotations="val.jsonl"))) == 2
  with pytest.raises(BadRequest, match="there is no .*test.jsonl"):
    StoryStream(folder, Options(split="test"))
  (folder / "train.jsonl").rename(folder / "train_10.jsonl")
  with pytest.raises(BadRequest, match="2 files that may hold the rows .train_10.jsonl, val.jsonl.*annotations"):
    StoryStream(folder)
  assert StoryStream(folder / "train_10.jsonl")
  elsewhere = write(tmp_path_factory.mktemp("x"), FRAMES)
  assert LayoutSource(StoryStream(elsewhere, Options(pictures=folder)), resolution=8)[0]
  write(elsewhere, {"image": "a", "text": "b"})
  with pytest.raises(BadRequest, match="need images, captions; the first has image, text"):
    StoryStream(elsewhere)
  assert not StoryStream.recognise(elsewhere)

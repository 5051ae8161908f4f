"""Interleaved documents as MMC4's and CoMM's rows hold them."""

import json
import pickle
import re

import numpy as np
import pytest

from orthus_jax.data.images import save_png
from orthus_jax.data.look import recognised
from orthus_jax.data.sources.comm import Comm
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.mmc4 import Mmc4
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest


def info(n, place, **fields):
  return {"image_name": f"{n}.png", "raw_url": f"https://x.org/other/{n}.jpg", "matched_text_index": place, **fields}


PAGE = {
    "url": "https://x.org", "text_list": ["One.", "Two.", "Three é.", "Four."],
    "image_info": [info(0, 3), info(1, 2), info(2, 3), info("gone", 0)], "similarity_matrix": [[0.1] * 4] * 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  for n in range(3):
    save_png(tmp_path / "images" / f"{n}.png", np.full((8, 8, 3), n, np.uint8))
  return tmp_path


def write(folder, *rows, name="docs_shard_0_v2.jsonl"):
  (folder / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
  return folder


def told(document):
  return [s.text if hasattr(s, "text") else int(s.pixels.max()) for s in document.segments]


def test_pictures_stand_before_their_sentences(folder):
  write(folder, PAGE)
  by_address = PAGE | {"image_info": [{"raw_url": "https://x.org/2.png?x", "matched_text_index": 0}]}
  write(folder, PAGE, by_address, name="docs_shard_1_v2.jsonl")
  (folder / "docs_shard_2_v2.jsonl.zip").write_bytes(b"PK")
  (folder / "docs_shard_1_v2.jsonl.zip").write_bytes(b"PK")
  layout = pickle.loads(pickle.dumps(Mmc4(folder)))
  source = LayoutSource(layout, resolution=8)
  assert told(source[0]) == told(source[1]) == ["One. Two.", 1, "Three é.", 0, 2, "Four."]
  assert told(source[2]) == [2, "One. Two. Three é. Four."]
  assert all(s.learn for s in source[0].segments) and source[0].kind == "interleaved"
  assert len({source[i].id for i in range(3)}) == 3 and layout.place(2) == (str(folder / "docs_shard_1_v2.jsonl"), "line 2")
  beside, packed, gone = layout.remarks.lines()
  assert "can't be read until they are unpacked: 1 (docs_shard_2" in packed and "beside what" in beside
  assert "aren't in the folder: " in gone and "https://x.org/other/gone.jpg" in gone
  assert list(recognised(folder)) == list(recognised(folder / "docs_shard_0_v2.jsonl")) == ["mmc4"]
  assert len(Mmc4(folder, Options(annotations="docs_shard_1_v2.jsonl"))) == len(Mmc4(folder / "docs_shard_1_v2.jsonl")) == 2


PAGES = {
    'must be one of the 4 sentences, from 0; got 4': PAGE | {"image_info": [info(0, 4)]},
    "from 0; got -1": PAGE | {"image_info": [info(0, -1)]},
    "from 0; got None": PAGE | {"image_info": [{"image_name": "0.png"}]},
    "from 0; got True": PAGE | {"image_info": [info(0, True)]},
    "it has no picture": PAGE | {"image_info": [info("gone", 0)]},
    "it has no text": PAGE | {"text_list": [" ", ""], "image_info": [info(0, 1)]},
    "must be a list of strings": PAGE | {"text_list": ["a", 1]},
    "must be a list of objects": PAGE | {"image_info": ["a"]},
    '"image_name" must be a string': PAGE | {"image_info": [info(0, 0, image_name=1)]},
    "lies outside the folder": PAGE | {"image_info": [info(0, 0, image_name="../0.png")]},
    "this one has url": {"url": "x"},
    "it isn't JSON": "{",
}  # fmt: skip


def test_bad_pages(folder, caplog):
  source = LayoutSource(Mmc4(write(folder, PAGE, *PAGES.values())), resolution=8, max_bad_share=1)
  check(source, PAGES)


def check(source, faults):
  assert [source[i] is None for i in range(len(source))] == [False] + [True] * len(faults)
  for row, why in enumerate(faults, start=1):
    with pytest.raises(BadRequest, match=re.escape(why)):
      source._read(source.layout.drafts(row)[0], source._picture)


def test_mmc4_refuses(folder):
  with pytest.raises(BadRequest, match="no .jsonl file"):
    Mmc4(folder)
  (folder / "docs.jsonl.gz").write_bytes(b"")
  for place in (folder, folder / "docs.jsonl.gz"):
    with pytest.raises(BadRequest, match="is packed.*unpack it"):
      Mmc4(place)
  write(folder, {"caption": "x"})
  with pytest.raises(BadRequest, match="isn't mmc4: its rows need text_list, image_info; the first has caption"):
    Mmc4(folder)
  with pytest.raises(BadRequest, match="none is fetched"):
    Mmc4(write(folder, PAGE), Options(pictures=folder / "nowhere"))


def text(words):
  return {"type": "text", "content": words}


def image(path):
  return {"type": "image", "url": "https://x.org", "image_path": path}


HOW = {
    "data_id": "1", "dataset_type": "wikihow", "title": "How to é", "summary_info": [],
    "step_info": [[text("First."), image("0.png")], [text("Then."), text("Last."), image("1.png")]],
}  # fmt: skip


def test_steps(folder):
  for name in ("train_data.jsonl", "train_data.json"):
    (folder / name).write_text(json.dumps(HOW) if name.endswith("l") else json.dumps([HOW, HOW | {"title": None}], indent=1))
    source = LayoutSource(pickle.loads(pickle.dumps(Comm(folder, Options(annotations=name)))), resolution=8)
    assert told(source[0]) == ["How to é", "First.", 0, "Then.\nLast.", 1]
    assert [s.learn for s in source[0].segments] == [False] + [True] * 4
  assert told(source[1]) == ["First.", 0, "Then.\nLast.", 1]
  assert list(recognised(folder)) == list(recognised(folder / "train_data.json")) == ["comm"]


STEPS = {
    "must be a list of lists": HOW | {"step_info": ["a"]},
    "must be objects": HOW | {"step_info": [["a"]]},
    "\"type\" must be text or image, got 'video'": HOW | {"step_info": [[{"type": "video"}]]},
    '"content" must be a string': HOW | {"step_info": [[text(None)]]},
    '"image_path" must be a path': HOW | {"step_info": [[image(None)]]},
    "lies outside the folder": HOW | {"step_info": [[image("/a.png")]]},
    "it has no picture": HOW | {"step_info": [[text("x")]]},
    "it has no text": HOW | {"step_info": [[image("0.png")]]},
    "doesn't exist": HOW | {"step_info": [[text("x"), image("7.png")]]},
    '"title" must be a string': HOW | {"title": 3},
    "must be a list of lists, one a step, got None": {"title": "x"},
}


def test_bad_steps(folder, caplog):
  check(LayoutSource(Comm(write(folder, HOW, *STEPS.values())), resolution=8, max_bad_share=1), STEPS)


class Bomb:
  def __reduce__(self):
    return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(folder):
  for name in ("train_data.pth", "test_data.pkl"):
    (folder / name).write_bytes(pickle.dumps(Bomb()))
  for place in (folder, folder / "train_data.pth"):
    assert not Comm.recognise(place)
    with pytest.raises(BadRequest, match="is a pickle, which is never loaded, as it can run anything.*as JSON"):
      Comm(place)
  layout = Comm(write(folder, HOW))
  assert layout.remarks.lines() == ["pickles passed over, which are never loaded: 2 (test_data.pkl, train_data.pth)"]
  with pytest.raises(BadRequest, match="isn't comm: its rows need step_info; the first has url"):
    Comm(write(folder, PAGE))

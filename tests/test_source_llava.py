"""Conversations in LLaVA's files, and the arrays of JSON that hold them."""

import json
import pickle
import re

import numpy as np
import pytest

from orthus_jax.data.images import save_png
from orthus_jax.data.look import recognised
from orthus_jax.data.sources import json_array
from orthus_jax.data.sources.json_array import JsonArray
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.llava import Llava
from orthus_jax.data.sources.registry import LAYOUTS
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest


def turns(*values, roles=("human", "gpt")):
  return [{"from": roles[i % 2], "value": v} for i, v in enumerate(values)]


ONE = {"id": "000", "image": "coco/a.png", "conversations": turns("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")}
TWO = {"id": 1, "image": ["coco/a.png", "coco/b.png"], "conversations": turns("Is <image> as <image>?", "No: é 漢 😀")}
NONE = {"id": "2", "conversations": [{"from": "system", "value": "Be brief."}, *turns("Hello", "Hi")]}


@pytest.fixture
def folder(tmp_path):
  for n, name in enumerate(("a.png", "b.png")):
    save_png(tmp_path / "coco" / name, np.full((8, 8, 3), n * 100, np.uint8))
  return tmp_path


def write(folder, *rows, name="data.json", **options):
  text = json.dumps(rows, **options) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
  (folder / name).write_text(text, encoding="utf-8")
  return folder


def said(document):
  return [(getattr(s, "text", None), s.learn) for s in document.segments]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "lines.json"])
def test_conversations(folder, name):
  write(folder, ONE, TWO, NONE, name=name.replace("lines.json", "lines.jsonl"))
  if name == "lines.json":  # rows a line each, by an array's name
    (folder / "lines.jsonl").rename(folder / name)
  for place in (folder, folder / name):
    source = LayoutSource(pickle.loads(pickle.dumps(Llava(place))), resolution=8)
    one, two, none = (source[i] for i in range(3))
    assert said(one) == [(None, False), ("What is it?", False), ("A cat.", True), ("Sure?", False), ("Yes.", True)]
    assert said(two) == [
        ("Is ", False), (None, False), (" as ", False), (None, False), ("?", False), ("No: é 漢 😀", True)
    ]  # fmt: skip
    assert [i.pixels.max() for i in two.images] == [0, 100]
    assert said(none) == [("Be brief.", False), ("Hello", False), ("Hi", True)]
    assert [d.kind for d in (one, two, none)] == ["question", "question", "text"]
    assert len({d.id for d in (one, two, none)}) == 3 and not source.bad.count
    assert list(recognised(place)) == ["llava"]


FAULTS = {
    "it has 1 of <image> for 0 pictures": {"conversations": turns("<image>What?", "A cat.")},
    "it has 0 of <image> for 1 pictures": {"image": "coco/a.png", "conversations": turns("What?", "A cat.")},
    "it has 1 of <image> for 2 pictures": TWO | {"conversations": turns("<image>What?", "A cat.")},
    "must be a list with at least": {"conversations": []},
    "must be a list with at": {"id": 3},
    "human first and gpt last; they are gpt, human": {"conversations": turns("a", "b", roles=["gpt", "human"])},
    "they are human, human": {"conversations": turns("a", "b", roles=["human"] * 2)},
    "they are human, gpt, human": {"conversations": turns("a", "b", "c")},
    "they are user, assistant": {"conversations": turns("a", "b", roles=["user", "assistant"])},
    "they are system": {"conversations": turns("a", roles=["system"])},
    "they are human, system": {"conversations": turns("a", "b", roles=["human", "system"])},
    "its text is empty": {"conversations": turns("a", " ")},
    "turn 1 is empty": {"conversations": turns(" \n", "b")},
    '"value" must be a string': {"conversations": turns("a", 3)},
    'must be an object of "from" and "value"': {"conversations": [{"role": "user", "content": "a"}]},
    "lies outside the folder": ONE | {"image": "../a.png"},
    "is an address": ONE | {"image": "http://x/a.png"},
    "doesn't exist": ONE | {"image": "coco/c.png"},
    '"image" must be a path': ONE | {"image": 3},
    'it has "video"': ONE | {"video": "a.mp4"},
    "half of a surrogate": {"conversations": turns("a", "\ud800")},
    "a row must be a JSON object": [1],
}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_each_bad_row_is_named_and_no_other_lost(folder, name, caplog):
  rows = [r for bad in FAULTS.values() for r in (bad, ONE)]
  source = LayoutSource(Llava(write(folder, *rows, name=name)), resolution=8, max_bad_share=1)
  documents = [source[i] for i in range(len(source))]
  assert [d is None for d in documents] == [True, False] * len(FAULTS)
  assert source.bad.distinct == len(FAULTS)
  for row, why in enumerate(FAULTS):
    with pytest.raises(BadRequest, match=re.escape(why)):
      source._read(source.layout.drafts(2 * row)[0], source._picture)
  where = source.layout.place(2)[1]
  assert where == "line 3" if name == "data.jsonl" else re.fullmatch(r"entry 3, byte \d+", where)


def test_where_pictures_lie(folder, tmp_path_factory):
  write(folder, ONE)
  elsewhere = write(tmp_path_factory.mktemp("x"), NONE, ONE)
  assert LayoutSource(Llava(elsewhere, Options(pictures=folder)), resolution=8)[1]
  assert LayoutSource(Llava(elsewhere), resolution=8, max_bad_share=1)[1] is None
  (folder / "coco").rename(elsewhere / "coco")
  (elsewhere / "images").mkdir()
  (elsewhere / "coco").rename(elsewhere / "images" / "coco")
  assert LayoutSource(Llava(elsewhere), resolution=8)[1]


def test_refusals(folder):
  with pytest.raises(BadRequest, match="no .json or .jsonl file"):
    Llava(folder)
  write(folder, {"prompt": "x", "text": "y"})
  with pytest.raises(BadRequest, match="need conversations and.*; the first has prompt, text"):
    Llava(folder)
  assert not Llava.recognise(folder)
  (folder / "torn.jsonl").write_text("x\n" + json.dumps(ONE))
  assert len(Llava(folder / "torn.jsonl")) == 2, "the first line is a bad row like any other"
  (folder / "torn.jsonl").unlink()
  write(folder, ONE, name="b.json")
  assert Llava(folder).fields()["image"] == '"coco/a.png"', "the one file that holds conversations"
  write(folder, ONE, name="c.json")
  with pytest.raises(BadRequest, match=r"2 files .*b.json, c.json.*annotations"):
    Llava(folder)
  assert len(Llava(folder, Options(annotations="c.json"))) == 1
  for name, why in (("no.json", "there is no"), ("e.json", "begins with"), ("f.json", "holds no row")):
    (folder / "e.json").write_text('"x"')
    (folder / "f.json").write_text(" [ ] ")
    with pytest.raises(BadRequest, match=why):
      Llava(folder, Options(annotations=name))
  with pytest.raises(BadRequest, match="no use for the option pairs"):
    Llava(folder, Options(pairs="to_text"))
  with pytest.raises(BadRequest, match="there is no"):
    Llava(folder / "nowhere")
  assert LAYOUTS["llava"] is Llava


@pytest.mark.parametrize("chunk", [8, 61, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_an_array_is_read_whatever_its_windows(folder, monkeypatch, chunk, options):
  monkeypatch.setattr(json_array, "_CHUNK", chunk)
  rows = [{"id": n, "conversations": [{"id": -1.5e9 * n, "v": '"é{[}],\\ 😀' * n, "t": True}]} for n in range(30)]
  for mark in (b"", b"\xef\xbb\xbf"):
    file = folder / "x.json"
    file.write_bytes(mark + json.dumps(rows, **options).encode())
    found = JsonArray(file, "conversations")
    assert [found.record(i) for i in range(len(found))] == rows and not found.broken


BROKEN = [
    '{"id": 1, "conversations": [', '{"id": 1, "conversations": "x]}', '{"id": 1 "conversations": 2}', '{"id": 1,}', "{'id':1}",
    "tru", '{"id": 1, "conversations": nul}', '{"id":"\n"}', '{"id":9,"x":[{"id":1}}', '{"id": 1, "c": "\\x"}',
    "[" * 200_000, '{"id": ' + "9" * 5000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_reading_goes_on_behind_a_broken_element(folder, monkeypatch, broken, chunk):
  monkeypatch.setattr(json_array, "_CHUNK", chunk)
  text = "[" + ", ".join([json.dumps(ONE), broken, json.dumps(TWO), json.dumps(NONE)]) + "]"
  (folder / "x.json").write_text(text)
  layout = Llava(folder)
  assert [layout.drafts(i)[0].segments[-1].text for i in range(len(layout))] == ["Yes.", "No: é 漢 😀", "Hi"]
  ((file, where, why),) = layout.broken
  assert file.endswith("x.json") and where == f"entry 2, byte {len(json.dumps(ONE)) + 4:,}" and why
  source = LayoutSource(layout, resolution=8, max_bad_share=0.3)
  assert (source.bad.count, source.bad.total) == (1, 4)


@pytest.mark.parametrize(
    "text, rows, why",
    [
        ("[{0}, {1}", 2, "cut short; nothing behind it is read"),
        ('[{0}, {{"id": "x', 1, "Unterminated string"),
        ("[{0}, {1},]", 2, "Expecting value"),
        ("[{0} {1}]", 2, "'{' stands where"),
        ("[{0}, {1}] []", 2, "behind the array's end"),
        ("[", 0, "Expecting value"),
    ],
)
def test_an_array_that_is_no_whole_one(folder, text, rows, why):
  (folder / "x.json").write_text(text.format(json.dumps(ONE), json.dumps(NONE)))
  layout = Llava(folder)
  assert len(layout) == rows and len(layout.broken) == 1 and why in layout.broken[0][2]


def test_a_file_of_broken_elements_is_given_up(folder, monkeypatch):
  monkeypatch.setattr(json_array, "_MOST_BROKEN", 3)
  (folder / "x.json").write_text("[" + '{"id": x}, ' * 9 + json.dumps(ONE) + "]")
  assert len(JsonArray(folder / "x.json", "conversations").broken) == 3

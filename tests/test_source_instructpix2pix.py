"""Edits as InstructPix2Pix' training set holds them."""

import json
import pickle
import re

import numpy as np
import pytest

from orthus_jax.data.images import save_png
from orthus_jax.data.look import recognised
from orthus_jax.data.sources.instructpix2pix import InstructPix2Pix
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest


def folder_of(root, name, *seeds, **prompt):
  for seed in seeds:
    for n in (0, 1):
      save_png(root / name / f"{seed}_{n}.png", np.full((8, 8, 3), n * 9 + int(seed), np.uint8))
      (root / name / f"{seed}_{n}.png").rename(root / name / f"{seed}_{n}.jpg")
  (root / name).mkdir(exist_ok=True)
  (root / name / "prompt.json").write_text(json.dumps(prompt))


@pytest.fixture
def edits(tmp_path):
  folder_of(tmp_path, "0000000", "12", "3", edit="make it snow", input="a road", output="a road in snow")
  folder_of(tmp_path, "0000002", "7", edit="no é", caption="x", output="y")
  listed = [["0000000", ["12", "3"]], ["0000001", ["5"]], ["0000002", [7]]]
  (tmp_path / "seeds.json").write_text(json.dumps(listed))
  return tmp_path


def test_each_seed_is_an_edit_and_folders_that_are_not_there_are_bad_rows(edits):
  for place in (edits, edits / "seeds.json"):
    layout = pickle.loads(pickle.dumps(InstructPix2Pix(place)))
    source = LayoutSource(layout, resolution=8, max_bad_share=0.25)
    one, two, missing, last = (source[i] for i in range(4))
    assert [(getattr(s, "text", None), s.learn) for s in one.segments] == [
        (None, False), ("make it snow", False), (None, True)
    ]  # fmt: skip
    assert [i.pixels.max() for i in one.images] == [12, 21] and [i.pixels.max() for i in two.images] == [3, 12]
    assert one.kind == "edit" and one.meta == {"input": "a road", "output": "a road in snow"}
    assert last.meta == {"input": "x", "output": "y"} and last.texts[0].text == "no é"
    assert len({one.id, two.id, last.id}) == 3
    assert missing is None and source.bad.distinct == 1 and layout.place(2) == (str(edits / "0000001"), "seed 5")
    with pytest.raises(BadRequest, match="there is no folder 0000001"):
      layout.drafts(2)
    assert next(iter(recognised(place))) == "instructpix2pix"
  assert layout.fields()["edit"] == '"make it snow"'


def test_a_pair_that_is_listed_again_counts_once(edits):
  (edits / "seeds.json").write_text(json.dumps([["0000000", ["12", "12"]], ["0000000", ["12", "3"]], ["0000000", ["3"]]]))
  layout = InstructPix2Pix(edits)
  assert [layout.drafts(i)[0].id for i in range(len(layout))] == ["0000000/12", "0000000/3"]
  assert layout.remarks.lines()[0].startswith("folders with pairs listed before, which count once: 3 (0000000")


def test_without_a_list_folders_are_read(edits):
  (edits / "seeds.json").unlink()
  (edits / "other").mkdir()
  layout = InstructPix2Pix(edits)
  assert [layout.drafts(i)[0].id for i in range(len(layout))] == ["0000000/12", "0000000/3", "0000002/7"]
  first, second = layout.remarks.lines()
  assert "without a seeds.json that lists them: 2 (0000000, 0000002)" in first
  assert "folders passed over" in second and "other" in second
  assert "prompt.json" in recognised(edits)["instructpix2pix"]


FAULTS = {
    "there is no prompt.json": lambda d: (d / "prompt.json").unlink(),
    "its prompt.json: it isn't JSON": lambda d: (d / "prompt.json").write_text("{"),
    'needs a string "edit"; it has instruction': lambda d: (d / "prompt.json").write_text('{"instruction": "x"}'),
    "its text is empty": lambda d: (d / "prompt.json").write_text('{"edit": " "}'),
    "doesn't exist": lambda d: (d / "7_1.jpg").unlink(),
    "isn't in a format that can be read": lambda d: (d / "7_0.jpg").write_bytes((d / "7_0.jpg").read_bytes()[:30]),
}


@pytest.mark.parametrize("why", FAULTS)
def test_bad_rows(edits, why, caplog):
  FAULTS[why](edits / "0000002")
  source = LayoutSource(InstructPix2Pix(edits), resolution=8, max_bad_share=1)
  assert source[0] and source[3] is None
  assert re.search(re.escape(why), source.bad._last)


def test_entries_of_the_list_that_are_none(edits):
  listed = [["0000000", ["3"]], ["../x", ["1"]], {"a": 1}, ["0000000", []], ["0000002", [[7]]], ["", ["1"]]]
  (edits / "seeds.json").write_text(json.dumps(listed)[:-1])
  layout = InstructPix2Pix(edits)
  assert len(layout) == 2 and layout.remarks.lines() == ["folders listed without a seed: 1 (0000000)"]
  assert [where.split(",")[0] for _, where, _ in layout.broken] == ["entry 3", "entry 5", "entry 6", "entry 7"]
  with pytest.raises(BadRequest, match="outside the folder"):
    layout.drafts(1)


def test_refusals(edits, tmp_path_factory):
  (edits / "seeds.json").write_text('[{"image": "a"}]')
  with pytest.raises(BadRequest, match=r"it needs \[\[folder, \[seeds\]\], …\]; its first entry is .*image"):
    InstructPix2Pix(edits)
  (edits / "seeds.json").write_text("[]")
  with pytest.raises(BadRequest, match="lists no seed"):
    InstructPix2Pix(edits)
  empty = tmp_path_factory.mktemp("empty")
  assert not InstructPix2Pix.recognise(empty)
  with pytest.raises(BadRequest, match="isn't there"):
    InstructPix2Pix(empty)
  with pytest.raises(BadRequest, match="there is no"):
    InstructPix2Pix(edits, Options(annotations="mine.json"))
  with pytest.raises(BadRequest, match="no folder"):
    InstructPix2Pix(edits / "nowhere")

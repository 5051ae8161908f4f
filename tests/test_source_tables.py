"""Parquet tables, img2dataset's, JourneyDB's and COCO's, in their published layouts."""

import io
import json
from pathlib import Path
import pickle

import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from sources import rejected

from orthus_jax.data import retrying
from orthus_jax.data.documents import Image, Text
from orthus_jax.data.sources import row_groups
from orthus_jax.data.sources.coco import Coco
from orthus_jax.data.sources.imagefolder import ImageFolder
from orthus_jax.data.sources.img2dataset import Img2dataset
from orthus_jax.data.sources.journeydb import JourneyDB
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.parquet import ParquetTable
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest

ALL = (ImageFolder, ParquetTable, Img2dataset, JourneyDB, Coco)


def png(color: int = 0) -> bytes:
  buffer = io.BytesIO()
  PIL.Image.new("RGB", (8, 8), (color,) * 3).save(buffer, "PNG")
  return buffer.getvalue()


def picture(file: Path, color: int = 0) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(png(color))


def table(file: Path, rows: list[dict], **options) -> Path:
  file.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, **options)
  return file.parent


def source(layout, path, **options) -> LayoutSource:
  s = LayoutSource(layout(path, Options(**options)), resolution=8, max_bad_share=1.0)
  assert [d.id for d in s if d] == [d.id for d in pickle.loads(pickle.dumps(s)) if d]
  assert [c.name for c in ALL if c.recognise(path)] == [layout.name]
  return s


def shape(d) -> list:
  return [(s.text if isinstance(s, Text) else int(s.pixels[0, 0, 0]), s.learn) for s in d.segments]


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_a_picture_and_a_text_a_row(form, tmp_path):
  pictures = [png(1), png(2), None]
  for i, data in enumerate(pictures[:2]):
    (tmp_path / f"{i}.png").write_bytes(data)
  images = {
      "bytes": pictures, "struct": [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(pictures)],
      "path": ["0.png", "1.png", None],
  }[form]  # fmt: skip
  rows = [{"image": p, "caption": f"text {i}", "score": i / 2} for i, p in enumerate(images)]
  s = source(ParquetTable, table(tmp_path / "x" / "a.parquet", rows), pairs="to_text", pictures=tmp_path)
  assert [d and shape(d) for d in s][:2] == [[(1, False), ("text 0", True)], [(2, False), ("text 1", True)]]
  assert s[0].meta == {"score": 0.0} and s.bad.distinct == 1 and s.layout.fields()["caption"] == "string (the text)"
  assert ("its image is empty" in rejected(s)[0]) if form != "struct" else s[2] is None


def test_bagels_layouts(tmp_path):
  captions = json.dumps({"short": " ", "long": "a cat"})
  rows = [{"image": png(3), "captions": captions}, {"image": png(3), "captions": "{"}, {"image": b"x", "captions": captions}]
  s = source(ParquetTable, table(tmp_path / "t2i" / "a.parquet", rows), pairs="to_image")
  assert shape(s[0]) == [("a cat", False), (3, True)] and s[1] is None and s[2] is None and "isn't JSON" in rejected(s)[0]
  rows = [
      {"image_list": [png(1), png(2), png(3)], "instruction_list": [["be 2", "or two"], ["be 3"]]},
      {"image_list": [png(1)], "instruction_list": [["be 2"]]}, {"image_list": [png(1), png(2)], "instruction_list": [[" "]]},
  ]  # fmt: skip
  s = source(ParquetTable, table(tmp_path / "edit" / "a.parquet", rows))
  assert shape(s[0]) == [(1, False), ("be 2", False), (2, True), ("be 3", False), (3, True)] and s[0].kind == "edit"
  assert "1 pictures and 1 instructions" in rejected(s)[0] and len(rejected(s)) == 2
  rows = [
      {"images": [None, png(1), None], "texts": ["first", None, "last"]}, {"images": [png(1)], "texts": ["both"]},
      {"images": [png(1), None], "texts": [None]}, {"images": [None, None], "texts": ["no", "picture"]},
  ]  # fmt: skip
  s = source(ParquetTable, table(tmp_path / "mixed" / "a.parquet", rows))
  assert shape(s[0]) == [("first", False), (1, True), ("last", True)] and len(rejected(s)) == 3
  table(tmp_path / "mixed" / "b.parquet", [{"images": [None, png(1)], "texts": [["list"], None]}])
  table(tmp_path / "mixed" / "c.parquet", [{"images": "a.png", "texts": "b"}])
  said = rejected(source(ParquetTable, tmp_path / "mixed"))
  assert len(said) == 5 and "must be a string" in said[3] and "images must be a list" in said[4]
  with pytest.raises(BadRequest, match="leave out --text and --pairs"):
    ParquetTable(tmp_path / "mixed", Options(pairs="to_text"))


def test_tables_that_do_not_fit_are_refused(tmp_path):
  with pytest.raises(BadRequest, match=r"no column for a picture.*its columns are a \(int64\), text \(string\)"):
    ParquetTable(table(tmp_path / "a" / "a.parquet", [{"a": 1, "text": "x"}]))
  with pytest.raises(BadRequest, match="no column for the text.*choose among a, b by --text"):
    ParquetTable(table(tmp_path / "b" / "a.parquet", [{"image": b"x", "a": "1", "b": "x"}]))
  with pytest.raises(BadRequest, match="no Parquet file"):
    ParquetTable(tmp_path / "none")
  s = LayoutSource(ParquetTable(table(tmp_path / "id" / "a.parquet", [{"image": png(1), "id": 5}])), resolution=8)
  with pytest.raises(BadRequest, match='"id" must be a string, got 5$'):  # the only column that could be the text
    s.layout.drafts(0)
  (tmp_path / "b" / "b.parquet").write_bytes(b"PAR1 cut")
  table(tmp_path / "b" / "c.parquet", [{"other": 1}])
  s = LayoutSource(ParquetTable(tmp_path / "b", Options(text=("a",))), resolution=8, max_bad_share=1.0)
  assert len(s) == 2 and s.bad.distinct == 2 and {Path(f).name for f, _, _ in s.layout.broken} == {"b.parquet", "c.parquet"}


def test_pictures_by_other_names_and_edits(tmp_path):
  one, two = ({"bytes": png(n), "path": None} for n in (1, 2))
  s = source(ParquetTable, table(tmp_path / "photo" / "a.parquet", [{"photo": one, "text": "x"}]), pairs="to_text")
  assert shape(s[0]) == [(1, False), ("x", True)]
  rows = [
      {"original_image": one, "edit_prompt": "be 2", "edited_image": two, "text": "not this"},
      {"original_image": one, "edit_prompt": "be 2", "edited_image": None, "text": "x"},
  ]
  s = source(ParquetTable, table(tmp_path / "edit" / "a.parquet", rows))
  assert shape(s[0]) == [(1, False), ("be 2", False), (2, True)] and s[0].kind == "edit" and s[1] is None
  assert "its edited_image is empty" in rejected(s)[0]
  with pytest.raises(BadRequest, match="leave out --pairs"):
    ParquetTable(tmp_path / "edit", Options(pairs="to_text"))
  turns = [{"user": "q", "assistant": "a"}]
  cauldron = table(tmp_path / "turns" / "a.parquet", [{"images": [one], "texts": turns}, {"images": [None], "texts": turns}])
  assert not any(c.recognise(cauldron) for c in ALL)
  with pytest.raises(BadRequest, match="no column for a picture"):
    ParquetTable(cauldron)


def test_texts_may_be_lists_or_dictionaries(tmp_path):
  t = pa.table({"image": [png(1)] * 3, "caption": [["", "b"], None, []], "kind": pa.array(list("xyz")).dictionary_encode()})
  (tmp_path / "a").mkdir()
  pyarrow.parquet.write_table(t, tmp_path / "a" / "a.parquet")
  s = source(ParquetTable, tmp_path / "a", pairs="to_text")
  assert [d and shape(d)[1] for d in s] == [("b", True), None, None] and s[0].meta == {"kind": "x"}
  assert shape(source(ParquetTable, tmp_path / "a", pairs="to_text", text=("kind",))[1])[1] == ("y", True)


def test_splits_of_parquet_files(tmp_path):
  for name in ("train-00000-of-00002", "train-00001-of-00002", "more", "val/a", "test-00000-of-00001"):
    table(tmp_path / f"data/{name}.parquet", [{"image": png(), "text": name}])

  def names(**options):
    return sorted(d.texts[0].text for d in source(ParquetTable, tmp_path, pairs="to_text", **options))

  assert names() == ["more", "train-00000-of-00002", "train-00001-of-00002"]
  assert names(split="validation") == ["val/a"] and names(split="test") == ["test-00000-of-00001"]
  assert source(ParquetTable, tmp_path).remarks.counts == {"files of other splits passed over": 2}
  with pytest.raises(BadRequest, match="no file of the split 'dev2'"):
    ParquetTable(tmp_path, Options(split="dev2"))
  assert [len(ParquetTable(tmp_path / "data" / n)) for n in ("val", "test-00000-of-00001.parquet")] == [1, 1]


def test_a_column_less_costs_no_file_unless_it_is_needed(tmp_path):
  table(tmp_path / "a.parquet", [{"image": png(1), "text": "x", "score": 1.0}])
  table(tmp_path / "b.parquet", [{"text": "y", "image": png(2)}, {"text": "z", "image": png(2)}])
  table(tmp_path / "c.parquet", [{"text": "no picture"}])
  s = source(ParquetTable, tmp_path, pairs="to_text")
  assert [shape(d)[1][0] for d in s] == ["x", "y", "z"] and s[0].meta == {"score": 1.0} and s[1].meta == {}
  assert s.layout.place(2) == (str(tmp_path / "b.parquet"), "row 1") and "no column image" in s.layout.broken[0][2]
  before = s.identity
  table(tmp_path / "b.parquet", [{"text": "other", "image": png(2)}])
  assert source(ParquetTable, tmp_path, pairs="to_text").identity != before


def test_what_can_be_read_of_a_damaged_file_is(tmp_path):
  rows = [{"image": png(1), "text": f"text {i:04} {'x' * 200}"} for i in range(400)]
  table(tmp_path / "a.parquet", rows, row_group_size=200, compression="none", use_dictionary=False, data_page_size=2048)
  data = bytearray((tmp_path / "a.parquet").read_bytes())
  at = data.index(b"text 0100") - 40
  data[at : at + 40] = b"\xff" * 40
  (tmp_path / "a.parquet").write_bytes(data)
  s = LayoutSource(ParquetTable(tmp_path, Options(pairs="to_text")), resolution=8, max_bad_share=1.0)
  good = [i for i, d in enumerate(s) if d]
  assert set(range(200, 400)) < set(good) and 0 in good and s.bad.distinct == 400 - len(good) > 0
  assert all(s[i].texts[0].text == rows[i]["text"] for i in (0, 399, 200))
  assert all(r.startswith("it can't be read: ") for r in rejected(s))


def test_a_file_system_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
  table(tmp_path / "a.parquet", [{"image": png(1), "text": str(i)} for i in range(200)])
  layout = ParquetTable(tmp_path, Options(pairs="to_text"))
  layout.drafts(0)
  failing, real = iter([OSError(5, "Input/output error")]), row_groups._opened
  monkeypatch.setattr(row_groups, "_opened", lambda f: _raise(e) if (e := next(failing, None)) else real(f))
  monkeypatch.setattr(retrying, "_WAITS", (0.0,))
  layout = pickle.loads(pickle.dumps(layout))
  assert [layout.drafts(i)[0].segments[1].text for i in (0, 150, 3)] == ["0", "150", "3"] and next(failing, None) is None


def _raise(e: Exception):
  raise e


def test_img2datasets_parquet(tmp_path):
  row = dict(url="u", width=8, height=8, original_width=8, original_height=8, exif="{}", sha256="0")
  rows = [
      row | dict(key="000000000", status="success", error_message=None, caption="a cat", jpg=png(1)),
      row | dict(key="000000002", status="failed_to_download", error_message="404", caption="gone", jpg=None),
      row | dict(key="000000001", status="success", error_message=None, caption=None, jpg=png(2)),
  ]
  folder = table(tmp_path / "d" / "00000.parquet", rows)
  (folder / "00000_stats.json").write_text("{}")
  s = source(Img2dataset, folder, pairs="to_text")
  assert len(s) == 2 and shape(s[0]) == [(1, False), ("a cat", True)] and s[0].id == "000000000:to_text"
  assert s[1] is None and "no text in caption" in rejected(s)[0]
  assert s.remarks.lines()[0].endswith("(000000002: 404)")
  assert s.remarks.counts == {"rows that img2dataset couldn't fetch (failed_to_download)": 1}
  side = table(tmp_path / "side" / "00000.parquet", [{k: v for k, v in r.items() if k != "jpg"} for r in rows])
  (side / "00000.tar").write_bytes(b"")
  with pytest.raises(BadRequest, match="use --source=webdataset"):
    Img2dataset(side)


def write_journey(folder: Path, *rows) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "train_anno.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
  return folder


def test_journeydb(tmp_path):
  for n in "ab":
    picture(tmp_path / "imgs" / "000" / f"{n}.png", ord(n))
  key = "Style Relevant Questions and Answers"
  questions = {key: [{"Question": "Which?", "Options": {"A": "oil", "B": "ink"}, "Answer": "B"}]}
  write_journey(
      tmp_path, {"img_path": "./000/a.png", "prompt": "a prompt --v 5", "Task2": {"Caption": "a caption"}},
      {"img_path": "000/./imgs/b.png", "prompt": "b prompt", "Task2": None}, {"img_path": "./000/a.png", "Task3": questions},
      {"img_path": "./000/a.png"}, {"img_path": "../a.png", "prompt": "x"}, "{", {"img_path": "./000/c.png", "prompt": "x"},
      {"img_path": "./000/a.png", "Task3": {key: [{"Question": "?", "Answer": "Z", "Options": {}}]}},
      {"img_path": "./000/a.png", "Task3": {key: 3}},
  )  # fmt: skip
  s = source(JourneyDB, tmp_path)
  good = [d for d in s if d]
  assert [shape(d) for d in good[:2]] == [[("a caption", False), (97, True)], [(97, False), ("a caption", True)]]
  assert shape(good[2]) == [("b prompt", False), (98, True)] and good[4].kind == "question"
  assert shape(good[4]) == [(97, False), ("Which?", False), ("ink", True)] and len(good) == 5 and s.bad.distinct == 6
  assert shape(next(iter(source(JourneyDB, tmp_path, text=("prompt", "caption")))))[0] == ("a prompt --v 5", False)
  with pytest.raises(BadRequest, match="no text called title"):
    JourneyDB(tmp_path, Options(text=("title",)))
  with pytest.raises(BadRequest, match="no field img_path; its fields are image"):
    JourneyDB(write_journey(tmp_path / "x", {"image": 1}))
  bad_first = JourneyDB(write_journey(tmp_path / "y", "{", "[1]", {"img_path": "a.png"}))
  assert bad_first.fields() == {"img_path": "the picture's path"}


def test_journeydbs_splits_and_paths(tmp_path):
  for name in ("train/imgs/005/a.png", "train/imgs/b.png", "test/imgs/c.png"):
    picture(tmp_path / "data" / name, ord(name[-5]))
  paths = ("./005/a.png", "/data/set/./imgs/005/a.png", "x/./imgs/b.png", "./imgs/b.png", "imgs/005/a.png", "/005/a.png", 3)
  write_journey(tmp_path / "data" / "train", *({"img_path": p, "prompt": "x"} for p in paths))
  (tmp_path / "data" / "train" / "train_anno.jsonl").rename(tmp_path / "data" / "train" / "train_anno_repath.jsonl")
  write_journey(tmp_path / "data" / "train", {"img_path": "old", "prompt": "x"})
  s = source(JourneyDB, tmp_path, pairs="to_text")
  assert [d and d.images[0].pixels[0, 0, 0] for d in s] == [97, 97, 98, 98, 97, None, None] and len(rejected(s)) == 2
  key = "Content Relevant Questions and Answers"
  options = [["A: oil", "B: ink"], ["oil", "ink"], {"A": "oil", "B": "ink"}, None, ["A: oil"], {"A": 1}]
  answers = ["B", "B", "ink", "ink", "B", 3]
  rows = [{"Task3": {key: [{"Question": "?", "Options": o, "Answer": a}]}} for o, a in zip(options, answers)]
  write_journey(tmp_path / "data" / "test", *({"img_path": "a/./imgs/c.png", **r} for r in rows))
  s = source(JourneyDB, tmp_path, split="test")
  assert [d and d.texts[1].text for d in s] == ["ink"] * 4 + [None] * 2 and "none of the options" in rejected(s)[0]
  write_journey(tmp_path / "x", "{", {"img_path": "a.png", "prompt": "x", **rows[0]})
  assert "has no caption" in rejected(source(JourneyDB, tmp_path / "x", text=("caption",)))[1]
  with pytest.raises(BadRequest, match="0 .jsonl files of the split 'valid'"):
    JourneyDB(tmp_path, Options(split="valid"))
  with pytest.raises(BadRequest, match="there is no"):
    JourneyDB(tmp_path, Options(annotations="gone.jsonl"))


def test_coco(tmp_path):
  for n in range(2):
    picture(tmp_path / "train2017" / f"{n}.jpg", n + 1)
  content = {
      "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
      + [{"id": 7, "file_name": "/x.jpg"}, {"id": 8, "file_name": "0.jpg"}, {"id": 8, "file_name": "1.jpg"}],
      "annotations": [
          {"id": 10, "image_id": 1, "caption": "one "}, {"id": 11, "image_id": 0, "caption": "zero"},
          {"id": 12, "image_id": 1, "caption": "two"}, {"id": 13, "image_id": 9, "caption": "lost"},
          {"id": 14, "image_id": 0, "caption": ""}, {"id": 15, "image_id": 7, "caption": "out"}, 3,
          {"id": 16, "image_id": 8, "caption": "which"},
      ],
  }  # fmt: skip
  (tmp_path / "annotations").mkdir()
  for name in ("captions_train2017.json", "captions_val2017.json"):
    (tmp_path / "annotations" / name).write_text(json.dumps(content))
  s = source(Coco, tmp_path, pairs="to_text")
  said = [[(2, False), ("one", True)], [(1, False), ("zero", True)], [(2, False), ("two", True)]]
  assert [d and shape(d) for d in s][:3] == said
  assert s[0].id == "captions_train2017.json:10:to_text" and len(rejected(s)) == 5
  assert "is there twice" in rejected(s)[-1] and s.remarks.counts == {"pictures without a caption": 1}
  with pytest.raises(BadRequest, match="0 of the split 'test' among captions_train2017.json, captions_val2017.json"):
    Coco(tmp_path, Options(split="test"))
  (tmp_path / "annotations" / "captions_val2017.json").unlink()
  assert len(Coco(tmp_path)) == 8
  with pytest.raises(BadRequest, match="0 of the split 'val'"):
    Coco(tmp_path, Options(split="val"))
  with pytest.raises(BadRequest, match="its annotations hold none"):
    Coco(tmp_path / "train2017")
  with pytest.raises(BadRequest, match="can't be read"):
    Coco(tmp_path, Options(annotations="gone.json"))
  one = LayoutSource(Coco(tmp_path / "annotations" / "captions_train2017.json"), resolution=8)
  assert isinstance(one[0].segments[1], Image)
  (tmp_path / "instances.json").write_text(json.dumps({"images": [], "annotations": [{"bbox": 1}]}))
  with pytest.raises(BadRequest, match="have no captions but bbox"):
    Coco(tmp_path / "instances.json")
  (tmp_path / "list.json").write_text("[1]")
  with pytest.raises(BadRequest, match="it holds a list"):
    Coco(tmp_path / "list.json")

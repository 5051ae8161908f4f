"""Hugging Face's imagefolder, in all the ways in which its table may lie."""

import json
from pathlib import Path
import pickle

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from sources import rejected

from orthus_jax.data.documents import Image, Text
from orthus_jax.data.sources.imagefolder import ImageFolder
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.tables import Csv
from orthus_jax.errors import BadRequest


def picture(file: Path, color: int = 0) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.new("RGB", (8, 8), (color, color, color)).save(file)


def write_csv(folder: Path, *lines: str) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "metadata.csv").write_bytes("\r\n".join(lines).encode() + b"\r\n")
  return folder


def source(path, **options) -> LayoutSource:
  return LayoutSource(ImageFolder(path, Options(**options)), resolution=8, max_bad_share=1.0)


def texts(s: LayoutSource) -> list[str | None]:
  return [d and d.texts[0].text for d in s]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("below", ["", "train", "one"])
def test_each_kind_of_table_is_read_wherever_it_lies(kind, below, tmp_path):
  folder = tmp_path / below
  rows = [{"file_name": f"sub/{i}.png", "caption": text, "name": "007"} for i, text in enumerate(("None", "12", "a, b\nc"))]
  for i in range(4):
    picture(folder / f"sub/{i}.png", i)
  if kind == "csv":
    write_csv(folder, "file_name,caption,name", "sub/0.png,None,007", "sub/1.png,12,007", '"sub/2.png","a, b\nc",007')
  elif kind == "jsonl":
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  else:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
  s = source(tmp_path, pairs="to_text")
  assert texts(s) == ["None", "12", "a, b\nc"] and [d.images[0].pixels[0, 0, 0] for d in s] == [0, 1, 2]
  assert s[0].meta == {"name": "007"} and s[0].kind == "image_to_caption" and len({d.id for d in s}) == 3
  assert s.remarks.counts == {"pictures without a row": 1} and "3.png" in s.remarks.lines()[0]
  assert ImageFolder.recognise(tmp_path) and len(source(tmp_path)) == 6
  again = pickle.loads(pickle.dumps(s))
  assert texts(again) == texts(s)


def test_several_pictures_a_row(tmp_path):
  for name in "abc":
    picture(tmp_path / f"{name}.png", ord(name))
  (tmp_path / "metadata.jsonl").write_text(json.dumps(
      {"input_file_name": "a.png", "text": "make it b", "output_file_name": "b.png"}
  ))  # fmt: skip
  (edit,) = source(tmp_path)
  assert edit.kind == "edit" and [type(s) for s in edit.segments] == [Image, Text, Image]
  assert [s.learn for s in edit.segments] == [False, False, True] and edit.images[1].pixels[0, 0, 0] == ord("b")
  (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_names": ["a.png", "c.png"], "text": "two"}))
  (both,) = source(tmp_path)
  assert both.kind == "interleaved" and [s.learn for s in both.segments] == [False, False, True]


def test_folders_are_classes_where_there_is_no_table(tmp_path):
  for name in ("black_cat/1.png", "dog/2.png", "dog/x/3.png", "loose.png"):
    picture(tmp_path / "train" / name)
  assert ImageFolder.recognise(tmp_path) == "folders of pictures: black_cat, dog"
  s = source(tmp_path, pairs="to_text")
  assert texts(s) == ["black cat", "dog", "x"] and s.remarks.counts["pictures passed over that lie in no class's folder"] == 1


def test_bad_rows_are_named(tmp_path):
  picture(tmp_path / "a.png")
  rows = [
      {"file_name": "a.png", "text": "good"}, {"file_name": "gone.png", "text": "x"}, {"file_name": "/a.png", "text": "x"},
      {"file_name": "../a.png", "text": "x"}, {"file_name": "https://x/a.png", "text": "x"}, {"file_name": "", "text": "x"},
      {"file_name": "a.png", "text": None}, {"file_name": "a.png", "text": " "}, {"file_name": 3, "text": "x"},
  ]  # fmt: skip
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n[1]\n{\n")
  s = source(tmp_path, pairs="to_text")
  assert [t for t in texts(s) if t] == ["good"] and s.bad.distinct == 10
  said = rejected(s)  # the missing picture is found when it is read
  assert len(said) == 9
  parts = ("lies outside", "never fetched", "names no picture", "has no text", "text is empty", "must be a path", "isn't JSON")
  for part in parts:
    assert any(part in line for line in said), part


def test_csv_rows_of_another_length_are_bad(tmp_path):
  picture(tmp_path / "a.png")
  write_csv(tmp_path, "file_name,text", "a.png,one,two", "a.png,good", "", '"a.png","sa""id"')
  s = source(tmp_path, pairs="to_text")
  assert texts(s) == [None, "good", 'sa"id'] and "3 values for 2 columns" in rejected(s)[0]
  assert s.layout.place(2)[1] == "line 5"


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda p: write_csv(p, "image,text", "a.png,x"), "no column file_name.*its columns are image, text"),
        (lambda p: write_csv(p, "file_name,image,text", "a.png,b.png,x"), "a column image beside file_name"),
        (lambda p: write_csv(p, "file_name,a,b", "a.png,x,y"), "no column for the text.*choose among a, b by --text"),
        (lambda p: (write_csv(p, "file_name,a", "a.png,x"), (p / "metadata.jsonl").write_text("{}")), "both metadata.csv and"),
        (lambda p: p.mkdir(exist_ok=True), "neither metadata.csv"),
        (lambda p: write_csv(p, "file_name,text"), "no row below its header"),
        (lambda p: (p / "metadata.csv").write_bytes("file_name,text\na.png,x\n".encode("utf-16")), "line 1 isn't UTF-8"),
        (lambda p: write_csv(p, "file_name,text,text", "a.png,x,y"), "more than one column called text"),
        (lambda p: write_csv(p, "file_name,text", 'a.png,"open', *["a.png,x"] * 9), "opened in the row of line 2"),
        (lambda p: (p / "metadata.parquet").write_bytes(b"PAR1"), "can't be read as Parquet"),
    ],
)
def test_what_does_not_fit_is_refused(write, said, tmp_path):
  write(tmp_path)
  with pytest.raises(BadRequest, match=said):
    ImageFolder(tmp_path)
  assert ImageFolder.recognise(tmp_path) in ("", "metadata.csv has a column file_name")


def test_options(tmp_path):
  for split in ("train", "test"):
    picture(tmp_path / split / "a.png")
    write_csv(tmp_path / split, "file_name,a,b", f"a.png,,{split}")
  assert texts(source(tmp_path, text=("a", "b"), pairs="to_text")) == ["train"]
  assert texts(source(tmp_path, text=("b",), split="test", pairs="to_text")) == ["test"]
  with pytest.raises(BadRequest, match="no split 'val'; its folders are test, train"):
    source(tmp_path, split="val")
  with pytest.raises(BadRequest, match="no column called c"):
    source(tmp_path, text=("c",))
  with pytest.raises(BadRequest, match="no use for the option pictures"):
    source(tmp_path, pictures=tmp_path)


def test_bad_rows_of_csv_are_rows(tmp_path):
  picture(tmp_path / "a.png")
  (tmp_path / "metadata.csv").write_bytes(b'file_name,text\na.png,caf\xe9\na.png,"a "quoted" word"\na.png,good\n')
  s = source(tmp_path, pairs="to_text")
  assert texts(s) == [None, None, "good"] and "isn't UTF-8" in rejected(s)[0] and "isn't CSV" in rejected(s)[1]


def test_only_line_feeds_end_a_row_of_csv(tmp_path):
  picture(tmp_path / "a.png")
  lines = ["one\u2028two", "a\x0cb", "c\x85d", '"e\u2029f"', "g\x1dh"]
  write_csv(tmp_path, "file_name,text", *(f"a.png,{line}" for line in lines))
  assert texts(source(tmp_path, pairs="to_text")) == [line.strip('"') for line in lines]


def test_rows_of_json_lines_may_differ(tmp_path):
  for name in "abc":
    picture(tmp_path / f"{name}.png", ord(name))
  rows = [
      "oops", {"file_name": "a.png", "text": "one"}, {"file_names": ["a.png", "b.png"], "caption": "two"},
      {"file_name": "c.png", "more_file_name": None, "text": "", "caption": "three"},
  ]  # fmt: skip
  (tmp_path / "metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
  s = source(tmp_path)
  kinds = [d and d.kind for d in s]
  assert kinds == [None, "caption_to_image", "image_to_caption", "interleaved", "caption_to_image", "image_to_caption"]
  assert [len(s.row(r)) for r in range(4)] == [1, 2, 1, 2] and s.remarks.counts == {} and ImageFolder.recognise(tmp_path)


def test_an_edit_without_its_outcome_is_bad(tmp_path):
  picture(tmp_path / "a.png")
  rows = [{"source_file_name": "a.png", "text": "turn it", "target_file_name": t} for t in ("a.png", None)]
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  s = source(tmp_path)
  assert [d and d.kind for d in s] == ["edit", None] and "target_file_name" in rejected(s)[0]
  with pytest.raises(BadRequest, match="leave out --pairs"):
    source(tmp_path, pairs="to_text")


def test_a_table_above_the_splits_folders(tmp_path):
  for split in ("train", "test"):
    picture(tmp_path / split / "a.png")
  write_csv(tmp_path, "file_name,text", "train/a.png,one", "./test/a.png,two", "train/../test/a.png,three")
  s = source(tmp_path, pairs="to_text")
  assert texts(s) == ["one"] and [*s.remarks.counts.values()] == [2] and ImageFolder.recognise(tmp_path)
  s = source(tmp_path, pairs="to_text", split="test")
  assert texts(s) == ["two", None] and s.layout.place(1)[1] == "line 4"
  picture(tmp_path / "val" / "a.png")
  with pytest.raises(BadRequest, match="no row of .* names a picture in val/"):
    source(tmp_path, split="val")


def test_folders_of_other_layouts_are_no_classes(tmp_path):
  for n in ("train2017", "val2017"):
    picture(tmp_path / "coco" / n / "1.png")
    picture(tmp_path / "bare" / n / "1.png")
    picture(tmp_path / "edits" / n / "1.png")
    (tmp_path / "edits" / n / "prompt.json").write_text("{}")
  (tmp_path / "coco" / "annotations").mkdir()
  (tmp_path / "bare" / "rows.jsonl").write_text("{}")
  assert not any(ImageFolder.recognise(tmp_path / n) for n in ("coco", "bare", "edits"))


def test_links_lead_in_no_circle(tmp_path):
  for name in ("cat/1.png", "dog/2.png"):
    picture(tmp_path / name)
  (tmp_path / "cat" / "up").symlink_to(tmp_path)
  assert texts(source(tmp_path, pairs="to_text")) == ["cat", "dog"]


def test_what_changes_the_rows_changes_the_fingerprint(tmp_path):
  picture(tmp_path / "train" / "a.png")
  write_csv(tmp_path / "train", "file_name,text", "a.png,x")
  before = source(tmp_path).identity
  assert source(tmp_path).identity == before
  write_csv(tmp_path / "train", "file_name,text", "a.png,xy")
  assert source(tmp_path).identity != before


def test_rows_of_csv_are_those_of_its_reader(tmp_path):
  import csv
  import io

  rng = np.random.default_rng(0)
  pieces = ["a", ",", '"', "\n", "\r\n", "é", " ", "", "x\ty", "\u2028", "\x0b"]
  rows = [["".join(rng.choice(pieces, 5)) for _ in range(3)] for _ in range(200)]
  buffer = io.StringIO(newline="")
  csv.writer(buffer).writerows([["p", "q", "r"], *rows])
  (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
  table = Csv(tmp_path / "t.csv")
  order = rng.permutation(200)
  assert table.columns == ["p", "q", "r"] and [[*table.row(i).values()] for i in order] == [rows[i] for i in order]


def test_rows_of_parquet_are_read_in_any_order(tmp_path):
  for n in range(2):
    t = pa.table({"i": [n * 500 + i for i in range(500)], "b": [bytes([i % 256]) * 10 for i in range(500)]})
    pyarrow.parquet.write_table(t, tmp_path / f"{n}.parquet", row_group_size=150)
  table = Parquet(sorted(tmp_path.glob("*.parquet")))
  assert len(table) == 1000 and [table.row(i)["i"] for i in range(1000)] == list(range(1000))
  order = np.random.default_rng(0).permutation(1000)[:60].tolist()
  assert [pickle.loads(pickle.dumps(table)).row(i)["i"] for i in order[:3]] == order[:3]
  assert [table.row(i)["i"] for i in order] == order and table.place(501)[1] == "row 1"
  table.select(["i"])
  assert table.row(7) == {"i": 7}

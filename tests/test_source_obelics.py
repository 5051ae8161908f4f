"""Interleaved web documents as OBELICS' Parquet files hold them, with pictures from a folder."""

import hashlib
import json
import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orthus_jax.data.images import save_png
from orthus_jax.data.look import recognised
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.obelics import Obelics
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest

A, B, C, GONE = "https://x.org/a.jpg?w=1", "https://x.org/photos/b%20b.png", "http://y.org/c", "https://z.org/gone.jpg"
STRINGS = pa.list_(pa.string())
SCHEMA = pa.schema({"images": STRINGS, "metadata": pa.string(), "general_metadata": pa.string(), "texts": STRINGS})


@pytest.fixture
def folder(tmp_path):
  for n, name in enumerate((f"{hashlib.sha256(A.encode()).hexdigest()}.png", "b b.png", "c.png")):
    save_png(tmp_path / "images" / name, np.full((8, 8, 3), n, np.uint8))
  (tmp_path / "images" / "c.png").rename(tmp_path / "images" / hashlib.md5(C.encode()).hexdigest())
  return tmp_path


def page(images, texts):
  return {"images": images, "texts": texts, "metadata": json.dumps([None] * len(images or ())), "general_metadata": "{}"}


GOOD = page([None, A, None, GONE, B, None, C], ["One. ", None, "\nTwo", None, None, "three é", None])


def write(folder, *rows, name="train-00000-of-00001.parquet", size=2, schema=SCHEMA):
  (folder / name).parent.mkdir(exist_ok=True)
  pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / name, row_group_size=size)
  return folder


def test_pages_with_pictures_from_the_folder(folder):
  write(folder, *[GOOD] * 5, name="data/a.parquet")
  write(folder, GOOD, name="data/b.parquet")
  layout = pickle.loads(pickle.dumps(Obelics(folder)))
  source = LayoutSource(layout, resolution=8)
  assert len(source) == 6 and len({source[i].id for i in range(6)}) == 6
  document = source[4]
  told = [s.text if hasattr(s, "text") else int(s.pixels.max()) for s in document.segments]
  assert told == ["One. ", 0, "\nTwo", 1, "three é", 2] and document.kind == "interleaved"
  assert all(s.learn for s in document.segments)
  assert layout.place(4) == (str(folder / "data" / "a.parquet"), "row 4")
  assert layout.place(5) == (str(folder / "data" / "b.parquet"), "row 0")
  gone = write(folder, page([None, GONE, None, C], ["One.", None, "Two.", None]), name="gone.parquet") / "gone.parquet"
  assert Obelics(gone).drafts(0)[0].segments[0].text == "One.\n\nTwo.", "words that a picture parted are still parted"
  (line,) = layout.remarks.lines()
  assert line.startswith("pictures left out of their documents, which aren't in the folder: 7") and GONE in line
  assert list(recognised(folder)) == ["obelics"] and Obelics.recognise(folder / "data" / "a.parquet")
  assert layout.fields()["images"].startswith("list<") and "metadata" in layout.fields()


FAULTS = {
    "must be lists of one length, they have 2 and 1": page([None, A], ["x"]),
    "must be lists of one length, they have none and 1": page(None, ["x"]),
    "at place 2, both of image and text is null": page([A, None], [None, None]),
    "at place 1, neither of image and text is null": page([A], ["x"]),
    "it has no picture that is there": page([GONE, None], [None, "x"]),
    "it has no text": page([A, None], [None, " "]),
    "must be lists of one length, they have 0 and none": page([], None),
    "it has no picture": page([], []),
    "a picture's address must be": page(["", None], [None, "x"]),
    "isn't in a format that can be read": page(["http://x/torn.png", None], [None, "x"]),
}


def test_bad_rows(folder, caplog):
  png = next((folder / "images").glob("*.png")).read_bytes()
  (folder / "images" / "torn.png").write_bytes(png[:-30])
  source = LayoutSource(Obelics(write(folder, GOOD, *FAULTS.values())), resolution=8, max_bad_share=1)
  assert [source[i] is None for i in range(len(source))] == [False] + [True] * len(FAULTS)
  for row, why in enumerate(FAULTS, start=1):
    with pytest.raises(BadRequest, match=re.escape(why)):
      source._read(source.layout.drafts(row)[0], source._picture)


def test_broken_files_and_groups(folder, caplog):
  write(folder, *[GOOD] * 8, name="a.parquet", size=4)
  data = bytearray((folder / "a.parquet").read_bytes())
  offset = pq.ParquetFile(folder / "a.parquet").metadata.row_group(0).column(0).dictionary_page_offset
  data[offset : offset + 60] = bytes(60)
  (folder / "a.parquet").write_bytes(data)
  (folder / "b.parquet").write_bytes(data[:-9])
  write(folder, {"x": 1}, name="c.parquet", schema=pa.schema({"x": pa.int32()}))
  layout = Obelics(folder)
  assert len(layout) == 8
  whys = "can't be read as Parquet", "it has no column images, texts"
  assert [any(why in said for why in whys) for _, _, said in layout.broken] == [True, True]
  source = LayoutSource(layout, resolution=8, max_bad_share=1)
  assert [source[i] is None for i in range(8)] == [True] * 4 + [False] * 4


def test_refusals(folder, tmp_path_factory):
  empty = tmp_path_factory.mktemp("empty")
  with pytest.raises(BadRequest, match="no Parquet file"):
    Obelics(empty)
  write(empty, GOOD)
  with pytest.raises(BadRequest, match="none is fetched.*images.*give one by --pictures"):
    Obelics(empty)
  assert LayoutSource(Obelics(empty, Options(pictures=folder / "images")), resolution=8)[0]
  write(folder, {"images": [b"x"], "texts": ["a"]}, schema=pa.schema({"images": pa.list_(pa.binary()), "texts": STRINGS}))
  with pytest.raises(BadRequest, match="isn't obelics: it needs images and texts, lists of strings; it has images .list"):
    Obelics(folder)
  assert not Obelics.recognise(folder)
  write(folder, {"texts": ["a"]}, schema=pa.schema({"texts": STRINGS}))
  with pytest.raises(BadRequest, match="it has texts .list"):
    Obelics(folder)
  write(folder)
  with pytest.raises(BadRequest, match="no row stands in"):
    Obelics(folder)

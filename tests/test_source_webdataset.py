"""The webdataset layout: texts chosen by the user, edits, what img2dataset leaves beside its tar files."""

import bz2
import gzip
import lzma
import os
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from test_tar import archive, pairs, picture, write

from orthus_jax.data.sources import tar_files, unpacked
from orthus_jax.data.sources.blip3o import Blip3o
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset
from orthus_jax.errors import BadRequest


def opened(folder, members, **options) -> WebDataset:
  write(folder, archive(members))
  return WebDataset(folder, Options(**options))


def said(layout: WebDataset) -> dict[str, str]:
  """The text of each row's first draft, or what is wrong with it."""
  found = {}
  for row in range(len(layout)):
    try:
      found[layout.place(row)[1]] = next(s.text for s in layout.drafts(row)[0].segments if hasattr(s, "text"))
    except BadRequest as e:
      found[layout.place(row)[1]] = f"! {e}"
  return found


# --- texts ----------------------------------------------------------------------------------------------------------

PARTS = {
    "txt": b"short", "caption": b"other", "long.txt": b"a long one", "prompt": b"asked", "meta.json": b'{"said": "so"}',
    "json": b'{"caption": "plain", "re": "again", "a.b": "dotted", "in": {"ner": "deep"}, "no": null, "n": 5, "e": " "}',
}  # fmt: skip


@pytest.mark.parametrize("text, want", [
    ((), "short"),
    (("caption",), "other"),
    ((".TXT",), "short"),
    (("json",), "plain"),
    (("json.re",), "again"),
    (("json:re",), "again"),
    (("json.a.b",), "dotted"),
    (("json.in.ner",), "deep"),
    (("json.no", "json.re", "txt"), "again"),
    (("json.absent", "txt"), "short"),
    (("long.txt",), "a long one"),
    (("prompt", "txt"), "asked"),
    (("meta.json:said",), "so"),
    (("json.absent",), '! its JSON has no "absent"; it has caption, re, a.b, in, no, n, e'),
    (("json.no",), '! "no" of its JSON is null'),
    (("json.n",), '! "n" of its JSON is no text'),
    (("json.e",), '! its text is empty: "e" of its JSON has no words'),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a", "d.1/a", "2.1"])
def test_the_text_is_the_one_asked_for(tmp_path, name, text, want):
  members = [(f"{name}.png", picture(1)), *((f"{name}.{part}", data) for part, data in PARTS.items())]
  others = [("z.png", picture(1)), ("z.txt", b"z"), ("z.json", b'{"absent": "z"}')]
  assert said(opened(tmp_path, members + others, text=text))[name] == want


@pytest.mark.parametrize("text, wrong", [
    ("", "names no part"), ("json:", "names no part"), ("txt:field", "names no part"), ("a..txt", "names no part"),
    ("jpg", "is a picture"), ("input.png", "is a picture"),
])  # fmt: skip
def test_what_names_no_text_is_refused(tmp_path, text, wrong):
  with pytest.raises(BadRequest, match=f"data.text: '{text}' {wrong}"):
    opened(tmp_path, [("a.png", picture(1)), ("a.txt", b"a cat")], text=(text,))


@pytest.mark.parametrize("text, there", [
    ("caption", "there are png, txt, json"), ("long.txt", "there are png, txt, json"),
    ("meta.json:said", "there are png, txt, json"), ("json.prompt", "it has alt"),
])  # fmt: skip
def test_a_text_that_no_sample_has_is_refused_with_those_there(tmp_path, text, there):
  members = [(f"{n}.{e}", d) for n in "abc" for e, d in (("png", picture(1)), ("txt", b"x"), ("json", b'{"alt": "y"}'))]
  with pytest.raises(BadRequest, match=rf"has {text} .*{there}"):
    opened(tmp_path, members, text=(text,))


def test_an_empty_text_is_named(tmp_path):
  members = [("0.png", picture(1)), ("0.json", b'{"caption": null}'), ("0.txt", b"")]
  assert said(opened(tmp_path, members))["0"].startswith("! its text is empty: its .txt holds no words (img2dataset")


# --- edits ----------------------------------------------------------------------------------------------------------

BEFORE, AFTER = ("x.input.png", picture(1)), ("x.output.png", picture(2))


@pytest.mark.parametrize("more", [
    [("x.txt", b"make it dark")],
    [("x.txt", b"a photo"), ("x.instruction.txt", b"make it dark")],
    [("x.edit.txt", b"make it dark"), ("x.input.txt", b"light"), ("x.output.txt", b"dark")],
    [("x.json", b'{"instruction": "make it dark", "caption": "dark"}')],
    [("x.json", b'{"edit": "make it dark", "input": "a", "output": "b"}'), ("x.seg.png", picture(3))],
])  # fmt: skip
@pytest.mark.parametrize("pairs", ["both", "to_text"])
def test_an_edit_goes_from_one_picture_to_another(tmp_path, more, pairs):
  members = sorted([BEFORE, AFTER, *more]) + [("y.png", picture(5)), ("y.txt", b"a pair")]
  layout = opened(tmp_path, members, pairs=pairs)
  assert list(layout.drafts_per_row) == [1, 2 if pairs == "both" else 1]
  source = LayoutSource(pickle.loads(pickle.dumps(layout)), resolution=8)
  document = source[0]
  assert (document.kind, document.id) == ("edit", "a.tar/x:edit")
  before, text, after = document.segments
  assert (text.text, text.learn) == ("make it dark", False)
  assert (before.pixels[0, 0, 0], before.learn, after.pixels[0, 0, 0], after.learn) == (1, False, 2, True)
  assert source[1].texts[0].text == "a pair" and len(source) == 1 + layout.drafts_per_row[1]


@pytest.mark.parametrize("members, faults", [
    ([BEFORE, AFTER], {"x": "the edit has no instruction"}),
    ([BEFORE, ("x.txt", b"t")], {"x": "the edit has no picture x.output"}),
    ([AFTER, ("x.edit.txt", b"t")], {"x": "the edit has no picture x.input"}),
    ([BEFORE, BEFORE, AFTER, ("x.txt", b"t")], {"x": "more than one .png is called x.input"}),
    ([BEFORE, AFTER, ("x.txt", b" ")], {"x": "its text is empty"}),
    ([BEFORE], {"x.input": "the sample has no text"}),
    ([("x.edit.txt", b"t")], {"x.edit": "the sample has no picture"}),
])  # fmt: skip
def test_half_an_edit_is_named(tmp_path, members, faults):
  found = said(opened(tmp_path, sorted(members)))
  assert found.keys() == faults.keys() and all(faults[name] in found[name] for name in found), found


def test_pairs_that_end_as_edits_do_are_pairs(tmp_path):
  members = sorted([BEFORE, AFTER, ("x.input.txt", b"light"), ("x.output.txt", b"dark")])
  assert said(opened(tmp_path, members)) == {"x.input": "light", "x.output": "dark"}


def test_a_whole_pair_passes_over_an_edit_of_its_name(tmp_path):
  layout = opened(tmp_path, sorted([BEFORE, AFTER, ("x.png", picture(9)), ("x.txt", b"a pair")]))
  assert said(layout) == {"x": "a pair"}
  assert layout.remarks.counts == {"pictures or texts passed over beside a whole sample of their name": 2}


# --- compressed tar files -------------------------------------------------------------------------------------------


def by_pyarrow(codec):
  def pack(data: bytes) -> bytes:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as f:
      f.write(data)
    return sink.getvalue().to_pybytes()

  return pack


PACKED = {
    "a.tar.gz": gzip.compress, "a.tgz": gzip.compress, "a.tar": gzip.compress, "a.tar.bz2": bz2.compress,
    "a.TAR.XZ": lzma.compress, "a.tar.lzma": lambda d: lzma.compress(d, lzma.FORMAT_ALONE),
    "a.tar.zst": by_pyarrow("zstd"), "a.tar.lz4": by_pyarrow("lz4"), "in/a.tzst": by_pyarrow("zstd"),
    "b.tar.gz": lambda d: gzip.compress(d[:1000]) + gzip.compress(d[1000:]) + bytes(50),
    "c.tar.gz": lambda d: d,  # its name lies
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("ORTHUS_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "unpacked"


@pytest.mark.parametrize("name", PACKED)
def test_compressed_tar_files_are_unpacked_once(tmp_path, cache, name, monkeypatch):
  data = PACKED[name](archive(pairs("x", "y")))
  file = write(tmp_path / "data", data, name)
  for place in (tmp_path / "data", file):
    layout = WebDataset(place)
    assert said(layout) == {"x": "box 0", "y": "box 1"} and layout.place(0) == (str(file), "x")
    assert layout.recognise(place).endswith("holds pictures beside .txt") and not layout.broken
    if name != "c.tar.gz":
      assert layout.remarks.counts == {"compressed tar files read from where they were unpacked to": 1}
      monkeypatch.setattr(unpacked, "_unpack", None)  # what is there is taken
  assert said(pickle.loads(pickle.dumps(layout))) == {"x": "box 0", "y": "box 1"}


def test_a_compressed_file_that_changes_is_unpacked_anew(tmp_path, cache):
  for i, names in enumerate((["x"], ["x", "y"], ["z", "y"])):
    file = write(tmp_path / "data", gzip.compress(archive(pairs(*names))), "a.tar.gz")
    os.utime(file, (i, i))
    assert list(said(WebDataset(file))) == names
  shutil.rmtree(cache)
  assert list(said(WebDataset(file))) == ["z", "y"]


@pytest.mark.parametrize("pack", [
    gzip.compress, lambda d: bz2.compress(d, 1), lambda d: lzma.compress(d, preset=0), by_pyarrow("zstd"),
])
def test_what_can_be_unpacked_of_a_damaged_file_is_read(tmp_path, cache, pack):
  noise = np.random.default_rng(0).bytes(400_000).hex().encode()  # several of bzip2's blocks
  members = [m for i in range(40) for m in ((f"{i:02}.png", picture(i)), (f"{i:02}.txt", noise[i * 20_000 : (i + 1) * 20_000]))]
  data = pack(archive(members))
  file = write(tmp_path / "data", data[: len(data) * 2 // 3], "a.tar.gz")
  for _ in range(2):  # it isn't forgotten when it has been unpacked
    layout = WebDataset(file)
    assert 3 <= len(said(layout)) < 40 and len(layout.broken) == 1 and layout.broken[0][0] == str(file)


def test_a_wrong_checksum_at_the_end_is_named(tmp_path, cache):
  data = bytearray(gzip.compress(archive(pairs("x"))))
  data[-6] ^= 1
  layout = WebDataset(write(tmp_path / "data", bytes(data), "a.tgz"))
  assert list(said(layout)) == ["x"]
  assert [(where, "CRC" in why) for _, where, why in layout.broken] == [("behind byte 10,240 of what it holds", True)]


@pytest.mark.parametrize("data", [
    b"\x1f\x8b" + bytes(600), b"BZh9" + bytes(600), b"\x1f\x9d" + bytes(600), b"\x28\xb5\x2f\xfd" + bytes(60),
])  # fmt: skip
def test_a_file_of_which_nothing_can_be_unpacked_is_refused(tmp_path, cache, data):
  write(tmp_path / "data", archive(pairs("x")))
  file = write(tmp_path / "data", data, "b.tar.Z")
  with pytest.raises(BadRequest, match=rf"{file} is compressed .* can't be unpacked here.*: unpack it into"):
    WebDataset(tmp_path / "data")
  assert not list(cache.glob("*")) and not list(cache.glob(".*"))


def test_a_disk_without_room_is_refused_before_anything_is_unpacked(tmp_path, cache, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
  write(tmp_path / "data", gzip.compress(archive(pairs("x"))), "a.tgz")
  with pytest.raises(BadRequest, match="GB are free .* set ORTHUS_CACHE"):
    WebDataset(tmp_path / "data")
  assert not cache.exists()


def test_another_process_may_unpack_the_same(tmp_path, cache, monkeypatch):
  file = write(tmp_path / "data", gzip.compress(archive(pairs("x"))), "a.tgz")
  first = unpacked._unpack
  inner = []

  def meanwhile(*args):
    if not inner:
      inner.append(True)
      assert list(said(WebDataset(file))) == ["x"]
    return first(*args)

  monkeypatch.setattr(unpacked, "_unpack", meanwhile)
  assert list(said(WebDataset(file))) == ["x"] and len(list(cache.iterdir())) == 1


# --- img2dataset ----------------------------------------------------------------------------------------------------


def table(path, **columns) -> None:
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  pq.write_table(pa.table(columns), path)


def test_rows_that_img2dataset_failed_to_fetch_are_counted(tmp_path):
  for name in ("00000.tar", "00001.tar"):
    write(tmp_path, archive(pairs("000000000")), name)
  (tmp_path / "00000_stats.json").write_text("{}")
  table(tmp_path / "00000.parquet", key=["0", "1", "2"], status=["success", "failed_to_download", "failed_to_resize"])
  table(tmp_path / "00001.parquet", key=["0"], status=["success"])
  assert WebDataset(tmp_path).remarks.lines() == ["rows that img2dataset failed to fetch: 2 (00000.parquet)"]


def test_other_files_beside_tar_files_are_named(tmp_path):
  write(tmp_path, archive(pairs("a")), "00000.tar")
  (tmp_path / "00001_stats.json").write_text("{}")  # its shard is missing
  table(tmp_path / "00002.parquet", key=["0"], status=["success"])
  assert dict(WebDataset(tmp_path).remarks.counts) == {
      ".json files passed over, which are no tar files": 1, ".parquet files passed over, which are no tar files": 1,
  }  # fmt: skip
  table(tmp_path / "00000.parquet", key=["0"])
  assert WebDataset(tmp_path).remarks.counts[".parquet files passed over, which are no tar files and have no status to read"]
  (tmp_path / "00000.parquet").write_bytes(b"PAR1")
  assert len(WebDataset(tmp_path)) == 1


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg"], ["a.json", "a.bin"], ["a.txt"], []])
def test_tar_files_of_something_else_are_not_recognised(tmp_path, names):
  write(tmp_path, archive([(n, b"x") for n in names]))
  assert WebDataset.recognise(tmp_path) == "" and WebDataset.recognise(tmp_path / "a.tar") == ""


def test_what_is_no_tar_file_is_not_recognised(tmp_path):
  (tmp_path / "a").mkdir()
  for name in ("a.json", "a/b.parquet", "x.tar"):
    (tmp_path / name).write_bytes(b"x" * 2000)
    assert WebDataset.recognise(tmp_path / name) == ""
  assert WebDataset.recognise(tmp_path) == ""
  assert [tar_files.stem(n) for n in ("a.TAR", "b.tar.gz", "c.gz", "d.tbz", "tar")] == ["a", "b", "", "d", ""]


def test_a_fingerprint_is_of_tar_files_at_any_depth(tmp_path):
  file = write(tmp_path, archive(pairs("a")), "x/0.tar")
  first = WebDataset(tmp_path).fingerprint()
  assert WebDataset(tmp_path).fingerprint() == first
  file.write_bytes(archive(pairs("a", "b")))
  assert WebDataset(tmp_path).fingerprint() != first


def test_places_of_samples_take_little_memory(tmp_path):
  names = [f"{i:09}" for i in range(1000)] + ["caf\udce9", "22.1"]
  shown = picture(1)
  file = write(tmp_path, archive([m for n in names for m in ((f"{n}.png", shown), (f"{n}.txt", b"x"), (f"{n}.json", b"{}"))]))
  WebDataset(file)
  tracemalloc.start()
  try:
    layout = WebDataset(file)
    taken = tracemalloc.take_snapshot()
  finally:
    tracemalloc.stop()
  # What threads of other tests take meanwhile is not this layout's.
  held = sum(each.size for each in taken.filter_traces([tracemalloc.Filter(True, "*/orthus_jax/data/sources/*")]).traces)
  # 748 bytes a sample once; Python 3.13 holds some 50 more than 3.11 does.
  assert held < 280 * len(layout) and len(pickle.dumps(layout)) < 180 * len(layout)
  assert [layout.place(i)[1] for i in range(len(layout))] == names and said(layout)["22.1"] == "x"
  with pytest.raises(IndexError):
    layout.place(len(layout))


def test_many_files_are_read_in_order(tmp_path):
  names = [f"{i:02}.tar" for i in range(40)]
  for name in reversed(names):
    write(tmp_path, archive(pairs("a")), name)
  layout = WebDataset(tmp_path)
  assert [layout.place(i)[0] for i in range(40)] == [str(tmp_path / name) for name in names]


# --- BLIP3o ---------------------------------------------------------------------------------------------------------


def test_blip3o_is_of_captions_to_pictures(tmp_path):
  folder = tmp_path / "BLIP3o-60k"
  for name in ("dalle3.tar", "geneval_train.tar"):
    write(folder, archive(pairs("000000000")), name)
  assert Blip3o.recognise(folder).startswith("BLIP3o-60k by its name, and dalle3.tar holds pictures")
  assert Blip3o.recognise(folder / "dalle3.tar") and not Blip3o.recognise(tmp_path)
  (folder / "dalle3.tar").rename(tmp_path / "dalle3.tar")
  assert not Blip3o.recognise(tmp_path / "dalle3.tar")
  layout = pickle.loads(pickle.dumps(Blip3o(folder)))
  assert [d.kind for d in layout.drafts(0)] == ["caption_to_image"]
  assert layout.remarks.lines()[0].endswith("1 (geneval_train.tar)")
  assert [d.kind for d in Blip3o(folder, Options(pairs="to_text")).drafts(0)] == ["image_to_caption"]

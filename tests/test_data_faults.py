"""Broken data: skipped, counted and named; too much of it stops the run."""

import dataclasses
import errno
import io
import json
import os
import struct
import tarfile
import zlib

from array_record.python import array_record_module
import numpy as np
import PIL.Image
import pytest
from sources import folder_source, tar_source
import tiny

from orthus_jax.data import images, retrying
from orthus_jax.data.prepared import shards, writer as prepared
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.data.shapes import builder
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest

TK = tiny.tokenizer()
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def flip(file, at: int, n: int = 40) -> None:
  """Other bytes in the midst of a file."""
  data = bytearray(file.read_bytes())
  data[at : at + n] = bytes(b ^ 0xFF for b in data[at : at + n])
  file.write_bytes(data)


def cut(file, share: float = 0.5) -> None:
  os.truncate(file, int(file.stat().st_size * share))


def png(color: int) -> bytes:
  return images.png_bytes(np.full((8, 8, 3), color, np.uint8))


def bomb() -> bytes:
  """A small file that says it is a picture of 12,000 x 12,000 pixels."""
  def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  head = struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100000))) + chunk(b"IEND", b"")


# --- pictures -------------------------------------------------------------------------------------------------------


def test_broken_and_gigantic_pictures_are_refused(monkeypatch):
  for data in (b"", b"\x89PNG\r\n\x1a\n", png(9)[:40], b"GIF89a" + bytes(7)):
    with pytest.raises(BadRequest) as e:
      images.load_image(data)
    assert "\n" not in str(e.value)
  monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("it was decoded"))
  with pytest.raises(BadRequest, match="has 12000x12000 pixels, more than"):
    images.load_image(bomb())


# --- a folder -------------------------------------------------------------------------------------------------------


def test_bad_rows_of_a_folder_are_named(tmp_path, caplog):
  for name, data in {"a.png": png(1), "cut.png": png(2)[:50], "empty.png": b"", "bomb.png": bomb()}.items():
    (tmp_path / name).write_bytes(data)
  rows = [json.dumps({"image": n, "text": "a box"}).encode() for n in ("a.png", "cut.png", "empty.png", "bomb.png", "no.png")]
  rows += [b'{"image": "a.png", "text": "\xff\xfe"}', b'{"image": "a.png", "te']  # not UTF-8; a file cut short
  (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(rows))
  source = folder_source(tmp_path, resolution=8, max_bad_share=1.0, pairs="to_image")
  good = [i for i in range(len(source)) if source[i] is not None]
  assert good == [0] and (source.bad.count, source.bad.distinct) == (6, 6)
  for line in range(2, 8):
    assert f"line {line}" in caplog.text
  for reason in ("has 12000x12000 pixels", "isn't UTF-8 (byte 29", "isn't JSON", "no.png' doesn't exist"):
    assert reason in caplog.text
  with pytest.raises(BadRequest, match="of 7 records are bad so far"):
    strict = folder_source(tmp_path, resolution=8, max_bad_share=0.1)
    [strict[i] for i in range(len(strict))]


def test_a_file_system_that_comes_back_is_waited_for(tmp_path, monkeypatch, caplog):
  tiny.write_folder(tmp_path, n=2)
  left, slept = [2], []
  real = images.Image.open

  def flaky(*args, **kwargs):
    if left[0]:
      left[0] -= 1
      raise OSError(errno.EIO, "Input/output error")
    return real(*args, **kwargs)

  monkeypatch.setattr(images.Image, "open", flaky)
  monkeypatch.setattr(retrying.time, "sleep", slept.append)
  source = folder_source(tmp_path, resolution=8)
  assert source[0] is not None and slept == [0.5, 2.0] and source.bad.count == 0
  assert "can't be reached (Input/output error); trying again in 2 s" in caplog.text
  left[0] = 99
  assert source[0] is None and source.bad.count == 1


# --- tar files ------------------------------------------------------------------------------------------------------


def write_tar(file, members: dict[str, bytes]) -> dict[str, int]:
  """Returns where each member's header stands."""
  places = {}
  with tarfile.open(file, "w") as tar:
    for name, data in members.items():
      places[name] = tar.offset
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return places


def many(n: int) -> dict[str, bytes]:
  return {f"d/{i:03d}.{e}": d for i in range(n) for e, d in (("png", png(i)), ("txt", f"box {i}".encode()))}


def test_pairs_of_tar_files_are_read(tmp_path):
  long = "d/" + "x" * 150 + ".png"  # a name longer than a header holds
  write_tar(tmp_path / "0.tar", many(3) | {long: png(9), long.replace(".png", ".json"): b'{"caption": "nine"}'})
  write_tar(tmp_path / "1.tar", {"b.jpg": png(7), "b.seg.png": png(8), "b.txt": b"seven\n", "readme.md": b"hello"})
  source = tar_source(tmp_path, resolution=8)
  assert len(source) == 10
  texts = [source[i].texts[0].text for i in range(0, 10, 2)]
  assert texts == ["box 0", "box 1", "box 2", "nine", "seven"]
  assert [source[i].kind for i in (0, 1)] == ["caption_to_image", "image_to_caption"]
  assert source[2].images[0].pixels[0, 0].tolist() == [1, 1, 1] and source[2].id == "0.tar/d/001:to_image"
  assert source.bad.distinct == 0
  write_tar(tmp_path / "2.tar", {"BZ1.png": png(3), "BZ1.txt": b"three"})  # begins as a bzip2 file does
  assert len(tar_source(tmp_path / "2.tar", resolution=8)) == 2


def test_broken_tar_files_give_what_is_whole(tmp_path, caplog):
  places = write_tar(tmp_path / "0.tar", many(40))
  write_tar(tmp_path / "1.tar", many(20))
  flip(tmp_path / "0.tar", places["d/020.png"], 300)  # its header
  cut(tmp_path / "1.tar")
  source = tar_source(tmp_path, resolution=8, max_bad_share=0.5, pairs="to_text")
  texts = [d.texts[0].text for d in (source[i] for i in range(len(source))) if d is not None]
  assert texts[:39] == [f"box {i}" for i in range(40) if i != 20]
  assert texts[39:] == [f"box {i}" for i in range(len(texts) - 39)] and 8 <= len(texts) - 39 <= 12
  assert "no tar header stands there" in caplog.text and "cut short" in caplog.text
  assert source.bad.distinct >= 3  # the stretch, the text that lost its picture, the cut
  with pytest.raises(BadRequest, match="more than the share of 0 put up with"):
    strict = tar_source(tmp_path, resolution=8, max_bad_share=0)
    [strict[i] for i in range(len(strict))]


@pytest.mark.parametrize("members, reason", [
    ({"a.png": png(1)}, "has no text"),
    ({"a.txt": b"box"}, "has no picture"),
    ({"a.png": png(1), "a.txt": b"\xff"}, "isn't UTF-8"),
    ({"a.png": png(1), "a.txt": b" "}, "its text is empty"),
    ({"a.png": png(1), "a.json": b"{"}, "its JSON can't be read"),
    ({"a.png": png(1), "a.json": b"[1]"}, 'neither "text" nor "caption"'),
    ({"a.png": bomb(), "a.txt": b"box"}, "has 12000x12000 pixels"),
    ({"a.png": b"", "a.txt": b"box"}, "isn't in a format"),
])  # fmt: skip
def test_bad_samples_are_named(tmp_path, caplog, members, reason):
  write_tar(tmp_path / "0.tar", members)
  source = tar_source(tmp_path, resolution=8, max_bad_share=1.0)
  assert source[0] is None and reason in caplog.text and "0.tar, a" in caplog.text


def test_what_is_no_tar_file_is_refused(tmp_path):
  (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
  with pytest.raises(BadRequest, match="compressed .gzip."):
    tar_source(tmp_path, resolution=8)
  (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
  with pytest.raises(BadRequest, match="1 of 1 records are bad|holds no sample"):
    tar_source(tmp_path, resolution=8)
  with pytest.raises(BadRequest, match="there is no tar file"):
    tar_source(tmp_path / "b", resolution=8)


# --- ArrayRecord files ----------------------------------------------------------------------------------------------


def write_shard(file, n: int = 60) -> None:
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
  for i in range(n):
    writer.write(bytes([i]) * 3000)
  writer.close()


def test_broken_array_records_are_passed_over(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(retrying.time, "sleep", lambda s: None)
  files = [tmp_path / f"{i}.array_record" for i in range(4)]
  for file in files:
    write_shard(file)
  flip(files[1], 90_000)
  cut(files[2])
  files[3].unlink()
  reader = shards.Shards(files, [60] * 4, BadRecords(max_share=1.0, total=240))
  read = [reader.read(i) for i in range(240)]
  assert all(read[i] == bytes([i % 60]) * 3000 for i in range(240) if read[i] is not None)
  lost = [sum(r is None for r in read[i : i + 60]) for i in range(0, 240, 60)]
  assert lost[0] == 0 and 1 <= lost[1] <= 3 and lost[2:] == [60, 60]
  assert reader.bad.count == reader.bad.distinct == sum(lost)
  for words in ("1.array_record, record", "cut short", "can't be reached"):
    assert words in caplog.text
  strict = shards.Shards(files, [60] * 4, BadRecords(max_share=0.01, total=240))
  with pytest.raises(BadRequest, match="of 240 records are bad so far"):
    [strict.read(i) for i in range(240)]
  with pytest.raises(BadRequest, match="cut short or no ArrayRecord file"):
    shards.Shards(files, None, BadRecords())


def _prepared(folder, monkeypatch, **changes):
  config = tiny.config(data__source="folder", data__path="unused")
  prepared.prepare(tiny.TinySource(80), TK, config, folder, images="pixels", part_bytes=4000)  # several files
  monkeypatch.setattr(retrying.time, "sleep", lambda s: None)
  config = tiny.config(data__source="prepared", data__path=str(folder), **changes)
  return lambda: PreparedPipeline(TK, config)


def test_training_goes_on_without_what_is_broken(tmp_path, monkeypatch, caplog):
  open_it = _prepared(tmp_path / "p", monkeypatch, data__max_bad_share=0.6)
  whole = open_it()
  ids = [whole.document_ids(s) for s in range(6)]
  unharmed = [whole.batch(s) for s in range(6)]
  files = sorted((tmp_path / "p").glob("pictures-*"))
  assert len(files) > 1
  files[0].unlink()
  broken = open_it()
  segments = [0, 0]
  for step in range(6):
    assert broken.document_ids(step) == ids[step]  # the order stays
    pair = (unharmed[step], broken.batch(step))
    segments = [n + p.segment_ids_BT.max(axis=1).sum() for n, p in zip(segments, pair)]
  assert 0 < segments[1] < segments[0]  # what lost its picture is left out
  assert "pictures-00000.array_record, record" in caplog.text and "the file can't be reached" in caplog.text
  stricter = dataclasses.replace(broken.config.data, max_bad_share=0.01)
  strict = PreparedPipeline(TK, dataclasses.replace(broken.config, data=stricter))
  with pytest.raises(BadRequest, match="are bad so far"):
    [strict.batch(step) for step in range(6)]


def test_a_broken_index_is_refused(tmp_path, monkeypatch):
  open_it = _prepared(tmp_path / "p", monkeypatch)
  cut(tmp_path / "p" / "index.npz")
  with pytest.raises(BadRequest, match="index.npz is damaged or missing"):
    open_it()


# A sixth of the way in stand records; the midst of so small a file is padding, which nothing reads.
@pytest.mark.parametrize("harm", [lambda f: flip(f, f.stat().st_size // 6, 200), cut])
def test_a_broken_shapes_data_set_is_noticed(tmp_path, harm, caplog):
  sizes = dict(train={k: 6 for k in builder.TRAIN}, test={k: 4 for k in builder.TEST})
  builder.prepare(tmp_path, 32, **sizes)
  for file in tmp_path.rglob("*train*array_record*"):
    harm(file)
  source = builder.documents(tmp_path, "train", 32, max_bad_share=1.0, **sizes)
  found = [source[i] for i in range(len(source))]
  assert 0 < source.bad.count == sum(d is None for d in found) and "shapes/" in caplog.text

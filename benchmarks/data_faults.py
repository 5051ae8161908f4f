"""What `faults.py` does to data: broken records and files, each counted, and no good one lost."""

from __future__ import annotations

from collections.abc import Iterator
import io
import logging
import os
from pathlib import Path
import shutil
import struct
import tarfile
import warnings
import zlib

from array_record.python import array_record_module
from fault_bench import PATIENCE, Bench, Row
import numpy as np

from orthus_jax.data import images, retrying
from orthus_jax.data.prepared import shards
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset


def data(bench: Bench) -> Iterator[Row]:
  """Broken records and files: each counted, and no good one lost."""
  logging.getLogger("orthus_jax").setLevel(logging.CRITICAL)
  warnings.simplefilter("ignore")
  retrying._WAITS = (0.01,)
  place = bench.fresh("data")
  good = images.png_bytes(np.full((40, 40, 3), 90, np.uint8))

  def folder(bad: list[tuple[bytes, bytes | None]]) -> tuple[int, int]:
    """(good documents read, bad rows counted) of 20 good rows and these bad ones: text, and a picture's bytes."""
    where = place / f"folder-{len(list(place.glob('*'))) if place.exists() else 0}"
    where.mkdir(parents=True)
    (where / "good.png").write_bytes(good)
    rows = [b'{"image": "good.png", "text": "a box"}'] * 20
    for i, (row, picture) in enumerate(bad):
      if picture is not None:
        (where / f"bad{i}.png").write_bytes(picture)
      rows.insert(3 * i, row.replace(b"BAD", f"bad{i}.png".encode()))
    (where / "metadata.jsonl").write_bytes(b"\n".join(rows))
    source = LayoutSource(Jsonl(where, Options(pairs="to_image")), resolution=32, max_bad_share=0.9)
    return sum(source[i] is not None for i in range(len(source))), source.bad.distinct

  plain = b'{"image": "BAD", "text": "a box"}'
  kinds = {
      "undecodable picture": [(plain, b"hello"), (plain, good[:60])], "zero-sized picture": [(plain, b"")],
      "gigantic picture": [(plain, _bomb())], "missing picture": [(plain, None)],
      "caption not UTF-8": [(b'{"image": "good.png", "text": "\xff\xfe\xfa"}', None)],
      "JSON lines cut short": [(b'{"image": "good.png", "te', None), (b'{"image": "good.png"}', None)],
  }
  for name, bad in kinds.items():
    row = Row(f"data: {name}")
    got, counted = folder(bad)
    for _ in bad:
      row.add((got, counted) == (20, len(bad)), f"{got} of 20 read, {counted} of {len(bad)} counted")
    yield row

  def tar(name: str, samples: int) -> tuple[Path, list[int]]:
    starts = []
    with tarfile.open(place / name, "w") as t:
      for i in range(samples):
        for extension, body in (("png", good), ("txt", b"a box")):
          member = tarfile.TarInfo(f"{i:03d}.{extension}")
          member.size = len(body)
          starts.append(t.offset)
          t.addfile(member, io.BytesIO(body))
    return place / name, starts

  for name, harm, least in (("tar cut short", lambda f, s: os.truncate(f, s[40] + 700), 20),
                            ("tar corrupt", lambda f, s: _overwrite(f, s[40], 512), 39)):  # fmt: skip
    file, starts = tar(f"{name.split()[1]}.tar", 40)
    harm(file, starts)
    source = LayoutSource(WebDataset(file, Options(pairs="to_image")), resolution=32, max_bad_share=0.9)
    got = sum(source[i] is not None for i in range(len(source)))
    row = Row(f"data: {name}")
    row.add(got == least and source.bad.distinct >= 1, f"{got} read, {source.bad.distinct} counted")
    yield row

  def shard(name: str) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(place / name), "group_size:1,uncompressed")
    for i in range(100):
      writer.write(bytes([i]) * 2000)
    writer.close()
    return place / name

  for name, harm, least in (
      ("ArrayRecord corrupt", lambda f: _overwrite(f, f.stat().st_size // 2, 50), 197),
      ("ArrayRecord cut short", lambda f: os.truncate(f, f.stat().st_size // 2), 100),
      ("unreachable shard", lambda f: f.unlink(), 100),
  ):
    files = [shard("a.array_record"), shard("b.array_record")]
    harm(files[0])
    reader = shards.Shards(files, [100, 100], BadRecords(max_share=0.9, total=200))
    read = [reader.read(i) for i in range(200)]
    right = all(r is None or r == bytes([i % 100]) * 2000 for i, r in enumerate(read))
    missing = sum(r is None for r in read)
    row = Row(f"data: {name}")
    counted = reader.bad.distinct
    row.add(right and 200 - missing >= least and 0 < missing == counted, f"{missing} missing, {counted} counted")
    yield row

  run, original = bench.fresh("too-bad"), bench.folder / "data"
  damaged = bench.folder / "data-damaged"
  shutil.copytree(original, damaged)
  for file in damaged.glob("pictures-*"):
    os.truncate(file, file.stat().st_size // 2)
  process = bench.start(run, f"--config.data.path={damaged}")
  row = Row("data: more than the share put up with")
  row.add(process.wait(PATIENCE) == 2 and "are bad so far" in bench.log(run), f"status {process.returncode}")
  yield row


def _overwrite(file: Path, at: int, n: int) -> None:
  with file.open("r+b") as f:
    f.seek(at)
    f.write(bytes(range(1, 251)) * (n // 250 + 1))


def _bomb() -> bytes:
  def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  head = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")

"""Data is prepared by many processes, and again after any stop, to the same bytes."""

import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest
from sources import folder_source, tar_source
from test_tar import archive, pairs, write
import tiny

from orthus_jax.data.prepared import laying, parts, writer
from orthus_jax.data.sources.joined import Joined
from orthus_jax.data.sources.mmc4 import Mmc4
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest

TK = tiny.tokenizer()
CONFIG = tiny.config()


def write_pictures(folder: Path, n: int) -> Path:
  """Pairs, of which every tenth lacks its picture, every seventh shows the one before."""
  folder.mkdir()
  rows = []
  for i in range(n):
    shown = i - (i % 7 == 6)
    if i % 10:
      pixels = np.random.default_rng(i).integers(0, 255, (12, 9, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    rows.append(json.dumps({"image": f"{shown}.png", "text": ("red box", "blue", "draw a red box")[i % 3]}))
  (folder / "metadata.jsonl").write_text("\n".join(rows))
  return folder


def prepare(pictures: Path, out: Path, share: float = 0.5, **options) -> dict:
  source = folder_source(pictures, resolution=8, max_bad_share=share)
  return writer.prepare(source, TK, CONFIG, out, **{"images": "pixels", "part_bytes": 4000} | options)


def contents(folder: Path) -> dict[str, str]:
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
  return write_pictures(tmp_path_factory.mktemp("pictures") / "data", 60)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("whole") / "out"
  prepare(pictures, folder)
  return folder


class Stops(Exception):
  pass


@pytest.mark.parametrize("images", ["pixels", "features"])
def test_a_stopped_command_goes_on_to_the_same_bytes(images, pictures, whole, tmp_path, monkeypatch):
  options = {"images": images, "encode": lambda x: x[:, ::2, ::2].reshape(len(x), 16, 3).repeat(2, -1)[..., :4] / 255}
  if images == "features":
    whole = tmp_path / "whole" / "out"
    prepare(pictures, whole, **options)
  add, calls, starts = parts.Parts.add, [], []

  def stopping(self, chunk):
    calls.append(chunk.rows)
    if len(calls) in (2, 3, 5):
      raise Stops  # between two parts, and twice at the same place
    add(self, chunk)

  monkeypatch.setattr(parts.Parts, "add", stopping)
  out = tmp_path / "out"
  for _ in range(4):
    starts.append(len(calls))
    try:
      prepare(pictures, out, **options)
    except Stops:
      continue
  monkeypatch.undo()
  assert calls[starts[1]][0] > 0 and (out / "prepared.json").exists()  # what was complete wasn't done again
  assert contents(out) == contents(whole)


def test_processes_change_nothing(pictures, whole, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(laying, "_WORTH", 1)
  made = prepare(pictures, tmp_path / "out", processes=2)
  assert contents(tmp_path / "out") == contents(whole)
  assert made["rejected"]["records"] == 6 and made["pictures"] == 60 - 6 - 7
  assert [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()][6:] == []  # of each once, and no more
  (reason,) = made["rejected"]["reasons"]
  assert "doesn't exist" in reason and "png" not in reason
  rejected = [json.loads(line) for line in (whole / "rejected.jsonl").read_text().splitlines()]
  assert [r["record"] for r in rejected] == [f"line {n}" for n in (1, 11, 31, 41, 42, 51)] and "0.png" in rejected[0]["reason"]


def test_stretches_that_cannot_be_read_are_named_beside_bad_rows(tmp_path):
  whole = archive(pairs("a", "b", "c"))
  write(tmp_path, whole[: 4 * 1024 + 600], "cut.tar")  # within the third picture
  out = tmp_path / "out"
  made = writer.prepare(tar_source(tmp_path / "cut.tar", resolution=8, max_bad_share=0.5), TK, CONFIG, out, images="pixels")
  assert made["documents"] and made["unreadable"] == {"stretches": 1, "reasons": {"the file is cut short there": 1}}
  noted, *rows = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
  assert len(rows) == made["rejected"]["records"]
  assert noted["file"].endswith("cut.tar") and noted["record"].startswith("byte ") and "cut short" in noted["reason"]
  assert "the file is cut short there" in (out / "samples.html").read_text()


def test_stretches_of_several_places_are_named_and_count_as_bad(tmp_path):
  whole = archive(pairs("a", "b", "c"))
  write(tmp_path, whole[: 4 * 1024 + 600], "cut.tar")
  write(tmp_path, whole, "whole.tar")

  def both(max_bad_share):
    places = [tar_source(tmp_path / n, resolution=8, max_bad_share=0.5) for n in ("cut.tar", "whole.tar")]
    return Joined(places, max_bad_share=max_bad_share)

  made = writer.prepare(both(0.5), TK, CONFIG, tmp_path / "out", images="pixels")
  assert made["unreadable"] == {"stretches": 1, "reasons": {"the file is cut short there": 1}}
  assert "cut.tar" in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()[0]
  with pytest.raises(BadRequest, match="are bad so far, more than the share of 0 put up with"):
    both(0)


def test_bad_documents_ahead_of_all_good_ones_leave_some_to_show(tmp_path):
  source = [None] * 200 + [d for n in range(2) if (d := tiny.TinySource()[n])]
  made = writer.prepare(source, TK, CONFIG, tmp_path / "out", images="pixels")
  assert made["documents"] == 2
  assert len((tmp_path / "out" / "shown" / "metadata.jsonl").read_text().splitlines()) == 2


def test_an_interrupt_never_reaches_the_processes_that_lay_out(pictures, monkeypatch):
  monkeypatch.setattr(laying, "_WORTH", 1)
  over = threading.Event()

  def interrupt() -> None:  # as a terminal does, from the moment they are there: they import for a while
    while not over.wait(0.02):
      for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)

  thread = threading.Thread(target=interrupt)
  thread.start()
  try:
    work = laying.Work(folder_source(pictures, resolution=8, max_bad_share=0.5), TK, CONFIG, "pixels")
    assert [c.rows for c in laying.chunks(work, 0, 2)] == [(0, 16), (16, 32), (32, 48), (48, 60)]
  finally:
    over.set()
    thread.join()


def test_what_is_written_is_what_the_manifest_says(whole):
  made = json.loads((whole / "prepared.json").read_text())
  for name, digest in made["files"].items():
    assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == digest
  assert len(made["files"]) > 4 and not (whole / parts.UNFINISHED).exists() and not (whole / parts.PARTS).exists()
  page = (whole / "samples.html").read_text()
  assert page.count("<section") == 24 and "draw a red box" in page and page.count("data:image") == 24


def test_only_the_same_request_goes_on(pictures, tmp_path, monkeypatch):
  def broken(self, chunk, add=parts.Parts.add):
    if self.totals.rows:
      raise Stops
    add(self, chunk)

  monkeypatch.setattr(parts.Parts, "add", broken)
  with pytest.raises(Stops):
    prepare(pictures, tmp_path / "out")
  monkeypatch.undo()
  before = contents(tmp_path / "out")
  with pytest.raises(BadRequest, match="unfinished data of another images"):
    prepare(pictures, tmp_path / "out", images="jpeg")
  times = (pictures / "metadata.jsonl").stat()
  os.utime(pictures / "metadata.jsonl", (0, 0))
  with pytest.raises(BadRequest, match=r"unfinished data of another source \(its files have changed since\): go on"):
    prepare(pictures, tmp_path / "out")
  os.utime(pictures / "metadata.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
  assert contents(tmp_path / "out") == before
  with pytest.raises(BadRequest, match="is there already"):
    prepare(pictures, pictures)


@pytest.mark.parametrize("file, damage, good", [
    ("documents-00001.array_record", None, 1), ("pictures-00001.array_record", lambda b: b[:100], 1),
    ("documents-00000.array_record", lambda b: b"", 0), ("parts/00001.npz", lambda b: bytes(len(b)), 1),
    ("parts/00001.npz", None, 1), ("parts/00001.json", lambda b: b"", 1), ("parts/00000.json", lambda b: b"1" * len(b), 0),
    ("unfinished.json", lambda b: b.replace(b'"sizes"', b'"before"'), 3),  # of an earlier version, which noted none
    ("unfinished.json", lambda b: b.replace(b'"rows"', b'"row"'), None),
    ("unfinished.json", lambda b: b.replace(b'"sizes": {', b'"sizes": 1, "other": {'), None),
])  # fmt: skip
def test_of_what_was_lost_all_is_done_again(file, damage, good, pictures, whole, tmp_path, monkeypatch, caplog):
  out, add, starts = tmp_path / "out", parts.Parts.add, []

  def stopping(self, chunk):
    starts.append(len(self.totals.documents))
    if len(starts) == 4:
      raise Stops
    add(self, chunk)

  monkeypatch.setattr(parts.Parts, "add", stopping)
  with pytest.raises(Stops):
    prepare(pictures, out)
  assert starts[-1] == 3
  if damage:
    (out / file).write_bytes(damage((out / file).read_bytes()))
  else:
    (out / file).unlink()
  if good is None:
    with pytest.raises(BadRequest, match="out/unfinished.json can't be read: remove .*out and prepare it anew"):
      prepare(pictures, out)
    return
  prepare(pictures, out)
  assert starts[4] == good and contents(out) == contents(whole)
  assert (f"part {good + 1} of 3 is damaged" in caplog.text) == (good < 3)


def test_a_part_is_named_once_the_disk_has_it(pictures, tmp_path, monkeypatch):
  kept: list[str] = []
  fsync, write_text = os.fsync, parts.write_text

  def noted(path, text):
    if path.name == parts.UNFINISHED and (named := json.loads(text)["parts"]):
      assert {*named[-1]["files"], f"{len(named) - 1:05d}.npz", f"{len(named) - 1:05d}.json"} <= set(kept)
    write_text(path, text)

  def keep(handle):
    kept.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
    fsync(handle)

  monkeypatch.setattr(os, "fsync", keep)
  monkeypatch.setattr(parts, "write_text", noted)
  prepare(pictures, tmp_path / "out")
  assert {"index.npz", "rejected.jsonl", "documents-00003.array_record"} <= set(kept)


@pytest.mark.parametrize("parts_done", [0, 1])
def test_a_command_killed_before_or_behind_its_first_part_goes_on(parts_done, pictures, whole, tmp_path):
  out = tmp_path / "out"
  program = (
      f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
      "from pathlib import Path\nimport test_prepare_resumed as t\n"
      "add = t.parts.Parts.add\n"
      "def killed(self, chunk):\n"
      "  add(self, chunk)\n"
      f"  if len(self.totals.documents) == {parts_done}:\n"
      "    os._exit(137)\n"
      "t.parts.Parts.add = killed\n"
      f"t.prepare(Path({str(pictures)!r}), Path({str(out)!r}), part_bytes={4000 if parts_done else 10**9})\n"
  )
  assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 137
  (out / f".{parts.UNFINISHED}.ab_1").write_text("{")  # killed while it wrote this
  assert list(out.glob("documents-*"))
  prepare(pictures, out)
  assert contents(out) == contents(whole)


def test_what_is_complete_stays_when_a_process_is_killed_or_too_much_is_bad(pictures, whole, tmp_path, monkeypatch):
  monkeypatch.setattr(laying, "_WORTH", 1)
  chunks = laying.chunks

  def broken(work, first, processes):
    for chunk in chunks(work, first, processes):
      if chunk.rows[0] >= 48:
        raise BadRequest("a process was killed: the same command goes on")
      yield chunk

  monkeypatch.setattr(laying, "chunks", broken)
  with pytest.raises(BadRequest, match="goes on"):
    prepare(pictures, tmp_path / "out")
  assert (tmp_path / "out" / parts.UNFINISHED).exists()
  with pytest.raises(BadRequest, match="are bad so far"):
    prepare(pictures, tmp_path / "bad", share=0.07)
  assert (tmp_path / "bad" / parts.UNFINISHED).exists()
  with pytest.raises(BadRequest, match="are bad so far"):
    prepare(pictures, tmp_path / "none", share=0)
  assert not (tmp_path / "none").exists()  # nothing was complete
  monkeypatch.undo()
  started = []
  monkeypatch.setattr(laying, "chunks", lambda work, first, n: started.append(first) or chunks(work, first, n))
  for out in ("out", "bad"):
    prepare(pictures, tmp_path / out)
    assert contents(tmp_path / out).keys() == contents(whole).keys()
    assert json.loads((tmp_path / out / "prepared.json").read_text()) == json.loads((whole / "prepared.json").read_text())
  assert min(started) > 0


@pytest.mark.slow
def test_killed_at_random_times_it_comes_to_the_same_bytes(tmp_path):
  pictures = write_pictures(tmp_path / "data", 400)
  tree = Path(__file__).parent
  program = (
      f"import sys; sys.path.insert(0, {str(tree)!r})\n"
      "if __name__ == '__main__':\n"
      "  from pathlib import Path\n  import test_prepare_resumed as t\n"
      f"  t.prepare(Path({str(pictures)!r}), Path(sys.argv[1]), processes=2, part_bytes=10_000)\n"
  )
  (tmp_path / "program.py").write_text(program)

  def start(out: Path) -> subprocess.Popen:
    with (tmp_path / "log").open("w") as log:
      return subprocess.Popen([sys.executable, tmp_path / "program.py", out], stderr=log)

  def done(out: Path) -> int:
    try:
      return len(json.loads((out / parts.UNFINISHED).read_text())["parts"])
    except FileNotFoundError:
      return 0

  whole = tmp_path / "whole" / "out"
  assert start(whole).wait(120) == 0
  rng, out = random.Random(0), tmp_path / "out"
  for _ in range(5):
    process, enough = start(out), done(out) + rng.randint(1, 3)
    while done(out) < enough and process.poll() is None:
      time.sleep(rng.uniform(0.001, 0.02))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
  last = start(out)
  assert last.wait(120) == 0, (tmp_path / "log").read_text()
  assert contents(out) == contents(whole)


def test_jpeg_files_of_the_right_size_are_kept_as_they_are(tmp_path):
  from orthus_jax.data.prepared.shards import Shards
  from orthus_jax.data.sources.bad_records import BadRecords

  noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
  (tmp_path / "data").mkdir()
  exif = PIL.Image.Exif()
  exif[0x112] = 6  # turned
  image = PIL.Image.fromarray(noise)
  image.save(tmp_path / "data" / "same.jpg", quality=60)
  image.save(tmp_path / "data" / "turned.jpg", exif=exif)
  image.save(tmp_path / "data" / "same.png")
  image.convert("L").save(tmp_path / "data" / "grey.jpg")
  PIL.Image.fromarray(noise[:128]).save(tmp_path / "data" / "wide.jpg")
  rows = [{"image": p.name, "text": "red box"} for p in sorted((tmp_path / "data").iterdir())]
  (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  config = tiny.config(
      model__vision_tokenizer__resolution=256, data__sequence_length=4200, model__transformer__max_positions=4200,
      model__vision_tokenizer__channel_multipliers=(1, 1, 1),
  )  # fmt: skip
  source = folder_source(tmp_path / "data", resolution=256, pairs="to_image")
  made = writer.prepare(source, TK, config, tmp_path / "out", images="jpeg")
  kept = Shards([tmp_path / "out" / "pictures-00000.array_record"], made["shards"]["pictures"], BadRecords())
  files = {p.read_bytes(): p.name for p in (tmp_path / "data").glob("*.jpg")}
  assert [files.get(kept.read(i)) for i in range(5)] == [None, "same.jpg", None, None, None]


def test_what_rows_leave_out_is_counted_once_whoever_reads_them(tmp_path, monkeypatch, caplog):
  page = {"text_list": ["red box"], "image_info": [
      {"image_name": f"{n}.png", "raw_url": f"http://x/{n}.png", "matched_text_index": 0} for n in range(2)
  ]}  # fmt: skip
  (tmp_path / "data" / "images").mkdir(parents=True)
  PIL.Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "0.png")
  (tmp_path / "data" / "pages.jsonl").write_text("\n".join([json.dumps(page)] * 40))
  (tmp_path / "data" / "more.jsonl.gz").write_bytes(b"")
  monkeypatch.setattr(laying, "_WORTH", 0)
  add, calls = parts.Parts.add, []

  def stopping(self, chunk):
    calls.append(chunk.rows)
    if calls == [(0, 16), (16, 32)]:
      raise Stops
    add(self, chunk)

  monkeypatch.setattr(parts.Parts, "add", stopping)
  for processes, stops in ((1, True), (2, False)):
    options = {"images": "pixels", "part_bytes": 1, "processes": processes}
    source = Joined([LayoutSource(Mmc4(tmp_path / "data"), resolution=8)], max_bad_share=0)
    if stops:
      with pytest.raises(Stops):
        writer.prepare(source, TK, CONFIG, tmp_path / "1", **options)
      source = Joined([LayoutSource(Mmc4(tmp_path / "data"), resolution=8)], max_bad_share=0)
    passed = writer.prepare(source, TK, CONFIG, tmp_path / str(processes), **options)["passed_over"]
    assert sorted(passed.values()) == [1, 40], passed
    assert "aren't in the folder: 40 (http://x/1.png, http://x/1.png, http://x/1.png, …)" in caplog.text
    caplog.clear()


def test_a_full_disk_ends_it_with_what_to_do(pictures, whole, tmp_path, monkeypatch):
  out = tmp_path / "out"
  program = (
      f"import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
      "from pathlib import Path\nimport test_prepare_resumed as t\n"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))\n"
      f"try:\n  t.prepare(Path({str(pictures)!r}), Path({str(out)!r}))\n"
      "except t.BadRequest as e:\n  print(e)\n"
  )
  said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
  assert "out can't be written (" in said and "the same command goes on" in said and not out.exists()

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(writer.samples_page, "write", full)
  with pytest.raises(BadRequest, match="No space left on device"):
    prepare(pictures, out)
  monkeypatch.undo()
  prepare(pictures, out)
  assert contents(out) == contents(whole)

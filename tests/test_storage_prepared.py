"""Data prepared into a bucket, part by part and resumed from anywhere; benchmarks' files in one; listings of many pages."""

import contextlib
import json
from pathlib import Path
import re
import shutil
import threading

import buckets
import pytest
from sources import folder_source
import test_prepare_resumed as resumed
import tiny

from orthus_jax import cli
from orthus_jax.data.prepared import format as record_format, in_bucket, parts, samples_page, writer
from orthus_jax.data.prepared.shards import Shards
from orthus_jax.data.sources import registry
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring, remote_run
from orthus_jax.storage.bucket import Bucket, Unreachable
from orthus_jax.storage.remote_lock import RemoteLock

URL = "s3://mine/runs/out"


@pytest.fixture(scope="module", autouse=True)
def few_beside_the_shards():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(writer, "_SHOWN", 2)
    patch.setattr(samples_page, "_SAMPLES", 4)
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
  return resumed.write_pictures(tmp_path_factory.mktemp("pictures") / "data", 40)


def prepare(pictures: Path, url: str = URL, **options) -> None:
  """As the command does it, in small parts."""
  source = folder_source(pictures, resolution=8, max_bad_share=0.5)
  with in_bucket.laid_out(url) as place:
    options = {"images": "pixels", "part_bytes": 2000, "called": url, "completed": place.part, "sizes": place.size} | options
    writer.prepare(source, resumed.TK, resumed.CONFIG, place.folder, **options)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> dict[str, bytes]:
  folder = tmp_path_factory.mktemp("whole") / "out"
  source = folder_source(pictures, resolution=8, max_bad_share=0.5)
  writer.prepare(source, resumed.TK, resumed.CONFIG, folder, images="pixels", part_bytes=2000)
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def content() -> dict[str, bytes]:
  return buckets.Server.objects("runs/out")


class Killed(BaseException):
  pass


def test_a_killed_prepare_goes_on_elsewhere_to_the_same_bytes(s3, pictures, whole, tmp_path, monkeypatch):
  left = 0

  def until_killed(do):
    def counted(*args, **kwargs):
      nonlocal left
      if threading.current_thread().name == "remote-lock":
        return  # or it depends on the time
      if left == 0:
        raise Killed  # from here on nothing reaches the bucket: neither what would tidy up
      left -= 1
      do(*args, **kwargs)

    return counted

  for name in ("put", "write", "remove"):
    monkeypatch.setattr(Bucket, name, until_killed(getattr(Bucket, name)))
  monkeypatch.setattr(in_bucket.InBucket, "leave", lambda self: None)
  monkeypatch.setattr(in_bucket.RemoteLock, "_ours_and_dead", lambda self, there: True)
  monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.map", lambda pool, do, items: map(do, items))  # one by one
  met, small = [], sum(not n.endswith((".array_record", "prepared.json")) for n in whole)
  for machine, requests in enumerate((1, 6, 10, 13 + small, 99)):
    buckets.elsewhere(monkeypatch, tmp_path / str(machine))
    left = requests
    with pytest.raises(Killed) if requests < 99 else contextlib.nullcontext():
      prepare(pictures)
    there = set(Bucket(URL).list())
    met.append((sum(n.endswith(".array_record") for n in there), "index.npz" in there))
    if requests < 99:
      said = "isn't prepared to its end yet" if parts.UNFINISHED in there else "holds no complete"
      with pytest.raises(BadRequest, match=said):
        record_format.read_facts(Path(bring.local(URL)))
  assert content() == whole
  assert met == [(0, False), (2, False), (4, False), (6, True), (6, True)]


def test_a_disk_holds_two_parts_of_it_and_nothing_in_the_end(s3, pictures, whole, monkeypatch):
  here, part = [], in_bucket.InBucket.part

  def counted(self):
    here.append(len(list(self.folder.glob("documents-*"))))
    part(self)

  monkeypatch.setattr(in_bucket.InBucket, "part", counted)
  prepare(pictures)
  assert len(here) > 2 and max(here) == 2 and content() == whole
  assert not [p for p in (Path(bring.place(URL)).parents[3] / "preparing").rglob("*") if p.is_file()]


def test_a_bucket_that_fails_leaves_complete_parts_or_nothing(s3, pictures, whole, monkeypatch):
  put, refused = Bucket.put, ""

  def failing(self, file, name):
    if name == refused:
      raise Unreachable(f"couldn't write {name}: it is away")
    put(self, file, name)

  monkeypatch.setattr(Bucket, "put", failing)
  for refused, left in (("pictures-00000.array_record", False), ("prepared.json", True)):
    with pytest.raises(BadRequest, match=f"^couldn't write {refused}: .*: see to the bucket, and the same command goes on$"):
      prepare(pictures)
    assert bool(content()) == left
  refused = ""
  with pytest.raises(BadRequest, match=f"^{URL} holds unfinished data of another images"):
    prepare(pictures, images="jpeg")
  s3.fill("runs/out", ["pictures-00007.array_record", "parts/00007.json"])  # of a part that no command has completed
  prepare(pictures)
  assert content() == whole
  Bucket(URL).write(parts.UNFINISHED, b"{}")  # killed before this was removed
  with pytest.raises(BadRequest, match="s3://mine/runs/out is there already"):
    prepare(pictures)


def stop_behind(monkeypatch, many: int) -> None:
  """Has data be prepared up to so many parts."""
  part = in_bucket.InBucket.part

  def stopping(self):
    part(self)
    if len(self._complete) == many:
      raise resumed.Stops

  monkeypatch.setattr(in_bucket.InBucket, "part", stopping)


@pytest.mark.parametrize("lost, cut", [("pictures-00001.array_record", True), ("parts/00001.npz", False)])
def test_of_what_a_bucket_lost_all_is_done_again(lost, cut, s3, pictures, whole, tmp_path, monkeypatch, caplog):
  with monkeypatch.context() as m, pytest.raises(resumed.Stops):
    stop_behind(m, 3)
    prepare(pictures)
  Bucket(URL).write(lost, b"x") if cut else Bucket(URL).remove([lost])
  buckets.elsewhere(monkeypatch, tmp_path / "other")
  prepare(pictures)
  assert f"{URL}: part 2 of 3 is damaged (its files are missing or cut short)" in caplog.text and content() == whole


def test_a_data_set_in_a_folder_below_is_left_alone(s3, pictures, whole, monkeypatch):
  with monkeypatch.context() as m, pytest.raises(resumed.Stops):
    stop_behind(m, 1)
    prepare(pictures)
  other = Bucket(f"{URL}/other")
  for name in ("prepared.json", "documents-00000.array_record"):
    other.write(name, b"x")
  with monkeypatch.context() as m, pytest.raises(resumed.Stops):
    m.setattr(writer, "prepare", lambda *args, **options: (_ for _ in ()).throw(resumed.Stops))
    prepare(pictures)
  prepare(pictures)
  assert content() == whole | {"other/prepared.json": b"x", "other/documents-00000.array_record": b"x"}
  Bucket(URL).remove(whole)
  with pytest.raises(BadRequest, match="is there already: choose another --out"):
    prepare(pictures)


def test_what_only_an_unfinished_one_needs_may_stay(s3, pictures, whole, tmp_path, monkeypatch, caplog):
  with monkeypatch.context() as m:
    remove = Bucket.remove

    def failing(self, names):
      if (names := list(names)) == ["unfinished.json"]:
        raise Unreachable("couldn't remove it: away")
      remove(self, names)

    m.setattr(Bucket, "remove", failing)
    prepare(pictures)
  assert "unfinished.json and parts/ in it can be removed, which failed: couldn't remove it: away" in caplog.text
  buckets.elsewhere(monkeypatch, tmp_path / "reader")
  here = Path(bring.local(URL))
  assert not (here / "unfinished.json").exists() and not (here / "parts").exists() and (here / "prepared.json").is_file()


def test_data_of_a_bucket_is_prepared_on_elsewhere(s3, pictures, tmp_path, monkeypatch, caplog):
  source, there = "s3://mine/runs/source", Bucket("s3://mine/runs/source")
  for file in pictures.iterdir():
    there.put(file, file.name)
  config = tiny.config(data__source="jsonl", data__path=source, data__max_bad_share=0.5)

  def prepare_it(url):
    with in_bucket.laid_out(url) as place:
      options = {"images": "pixels", "part_bytes": 2000, "called": url, "completed": place.part, "sizes": place.size}
      return writer.prepare(registry.open_source(config, "train"), resumed.TK, config, place.folder, **options)

  for url in (URL, f"{URL}-other"):
    with monkeypatch.context() as m, pytest.raises(resumed.Stops):
      stop_behind(m, 2)
      prepare_it(url)
  buckets.elsewhere(monkeypatch, tmp_path / "other")
  caplog.set_level("INFO")
  assert prepare_it(URL)["source"].startswith(f"Jsonl('{source}', ") and "going on behind row 32" in caplog.text
  rejected = [json.loads(line) for line in content()["rejected.jsonl"].splitlines()]
  assert {r["file"] for r in rejected} == {f"{source}/metadata.jsonl"} and f"'{source}/0.png'" in rejected[0]["reason"]
  there.write("metadata.jsonl", (pictures / "metadata.jsonl").read_bytes().replace(b"blue", b"grey"))
  buckets.elsewhere(monkeypatch, tmp_path / "other")
  with pytest.raises(BadRequest, match=r"holds unfinished data of another source \(its files have changed since\)"):
    prepare_it(f"{URL}-other")


def test_what_lies_in_a_bucket_is_looked_at(s3, pictures, capsys):
  for name in ("metadata.jsonl", "1.png"):
    Bucket("s3://mine/runs/source").put(pictures / name, name)
  assert cli.main(["prepare", "--look", "s3://mine/runs/source"]) == 0
  shown = capsys.readouterr().out
  assert "jsonl (metadata.jsonl has rows" in shown and "--source=jsonl s3://mine/runs/source --out=DIR" in shown
  assert cli.main(["prepare", "--look", "s3://nobucket/data"]) == 2
  assert "there is no bucket 'nobucket'" in capsys.readouterr().err


def test_the_command_prepares_into_a_bucket_and_training_reads_it(s3, pictures, tmp_path, capsys, monkeypatch):
  tiny.tokenizer().save(tmp_path)
  from orthus_jax.config import to_dict

  tree = to_dict(tiny.config(data__tokenizer=str(tmp_path), data__max_bad_share=0.5))
  (tmp_path / "config.py").write_text(
      f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n"
  )
  command = ["prepare", "--source=jsonl", str(pictures), f"--config={tmp_path / 'config.py'}"]
  first = RemoteLock(Bucket(URL))
  monkeypatch.setattr("orthus_jax.storage.remote_lock.BEAT", 0.05)
  assert cli.main([*command, f"--out={URL}"]) == 2 and "is in use: another command works there" in capsys.readouterr().err
  first.release()
  assert cli.main([*command, f"--out={URL}"]) == 0
  assert re.match(f"{URL}: 74 documents, .*; some of them: {URL}/samples.html", capsys.readouterr().out)
  here = Path(bring.local(URL))
  facts = record_format.read_facts(here)
  shards = Shards.of(here, facts, "documents", BadRecords())
  assert len(shards) == 74 and all(shards.read(i) for i in range(74))
  for out, said in (
      (URL, "is there already"), ("s3://nobody/x", "there is no bucket 'nobody'"), ("s3://", "names no bucket"),
  ):
    assert cli.main([*command, f"--out={out}"]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told


def test_a_benchmarks_files_come_from_a_bucket(s3, tmp_path, capsys):
  rows = [{"question_id": i, "image": f"{i}.jpg", "text": "Is there a dog?", "label": "yes"} for i in range(4)]
  answers = [{"question": "Is there a dog?", "answer": "yes" if i else "no"} for i in range(4)]
  bucket = Bucket("s3://mine/runs/pope")
  for name, lines in (("labels/coco_pope_random.json", rows), ("answers/random.json", answers)):
    bucket.write(name, "\n".join(map(json.dumps, lines)).encode())
  assert cli.main(["score", "pope", f"{bucket.url}/answers", f"--labels={bucket.url}/labels", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["scores"]["random/accuracy"] == 0.75
  assert cli.main(["score", "pope", f"{bucket.url}/nothing", "--json"]) == 2
  command = ["evaluate", "no_run", "--benchmark=pope", f"--out={tmp_path / 'out'}"]
  assert cli.main([*command, f"--data={bucket.url}/nothing"]) == 2
  assert capsys.readouterr().err.count(f"there is nothing at {bucket.url}/nothing") == 2
  assert cli.main(["score", "pope", f"{bucket.url}/answers", f"--labels={bucket.url}/labels", "--out=s3://mine/scores"]) == 2
  assert "is written to disk alone" in capsys.readouterr().err


# --- many objects ---------------------------------------------------------------------------------------------------


def test_more_objects_than_a_page_of_a_listing_holds_are_all_seen(s3, tmp_path):
  s3.fill("runs/run", ["config.json", *(f"checkpoints/1/params/d/{i:04}" for i in range(1001))])
  s3.fill("runs/run", ["checkpoints/1/manifest.json", "checkpoints/2/manifest.json", "checkpoints/3.unfinished"])
  s3.requests.clear()
  found = Bucket("s3://mine/runs/run").list()
  assert len(found) == 1005 and len(s3.requests) == 2  # or the server had no pages
  assert remote_run.whole_steps(found) == [1, 2] and remote_run.unfinished(found) == [3]
  s3.fill("runs/out", ["prepared.json", "tokenizer.json", *(f"pictures-{i:05}.array_record" for i in range(1001))])
  here = Path(bring.local(URL))
  assert {p.name for p in here.iterdir()} == {".brought", "prepared.json", "tokenizer.json"}
  shutil.rmtree(here)

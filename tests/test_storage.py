"""Runs, checkpoints and data in buckets: against S3's API on loopback, and Google's by an emulator."""

import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import buckets
import pytest

from orthus_jax import cli
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.storage import bring, bucket as bucket_lib, remote_lock, remote_run, send
from orthus_jax.storage.bucket import Bucket
from orthus_jax.storage.mirror import Mirror, mirrored, place
from orthus_jax.storage.remote_lock import RemoteLock
from orthus_jax.training.checkpoints import listing, workdir as checkpoints

URL = "s3://mine/runs/a"


def elsewhere(monkeypatch, tmp_path, name="other"):
  """Another machine: it has none of what was here."""
  buckets.elsewhere(monkeypatch, tmp_path / name)


def checkpoint(run, step, *, manifest=True, size=1000):
  """A checkpoint as a save leaves it, made-up bytes."""
  folder = run / "checkpoints" / str(step)
  (folder / "params" / "d").mkdir(parents=True)
  data = hashlib.sha256(str(step).encode()).digest() * (size // 32)
  (folder / "params" / "d" / "0").write_bytes(data)
  (folder / "_CHECKPOINT_METADATA").write_text("{}")
  if manifest:
    (folder / "manifest.json").write_text(json.dumps({"crc32": {"params/d/0": [len(data), 0]}, "step": step}))
  return folder


def run_in(folder, *steps):
  """A run's directory."""
  folder.mkdir(parents=True, exist_ok=True)
  for step in steps:
    checkpoint(folder, step)
  (folder / "metrics.jsonl").write_text("".join(f'{{"step": {s}}}\n' for s in steps))
  (folder / "config.json").write_text("{}")
  return folder


def content(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def wait_for(what):
  end = time.monotonic() + 60
  while not what():
    assert time.monotonic() < end
    time.sleep(0.01)


def whole_at(url=URL):
  return remote_run.whole_steps(Bucket(url).list())


def test_a_run_goes_to_its_bucket_and_comes_back_elsewhere(s3, tmp_path, monkeypatch):
  with mirrored(URL) as here:
    run_in(here, 1, 2)
  before = content(here)
  assert whole_at() == [1, 2] and "lock" not in Bucket(URL).list()
  elsewhere(monkeypatch, tmp_path)
  newest = {n: v for n, v in before.items() if "checkpoints/1" not in n}  # is enough
  assert content(pathlib.Path(bring.local(URL))) == newest
  with mirrored(URL) as again:
    assert again != here and content(again) == newest
    checkpoint(again, 3)
    shutil.rmtree(again / "checkpoints" / "2")  # as Orbax does with old ones
  assert whole_at() == [1, 3]


def test_what_reads_a_run_leaves_the_directory_alone_in_which_it_works(s3, capsys):
  with mirrored(URL) as here:
    run_in(here, 1)
    assert not Mirror(Bucket(URL), here).sync()
    (here / "metrics.jsonl").write_text("newer than in the bucket\n")
    assert cli.main(["runs", URL]) == 0 and bring.local(URL) != str(here)
    assert (here / "metrics.jsonl").read_text() == "newer than in the bucket\n"


def test_a_disk_that_is_gone_takes_no_checkpoint_with_it(s3):
  with mirrored(URL) as here:
    run_in(here, 1, 2)
    mirror = Mirror(Bucket(URL), here)
    assert not mirror.sync()
    shutil.rmtree(here / "checkpoints")
    assert not mirror.sync() and whole_at() == [1, 2]


def test_old_checkpoints_of_other_machines_go_too(s3, tmp_path, monkeypatch):
  with mirrored(URL) as here:
    run_in(here, 1, 2, 3)
  elsewhere(monkeypatch, tmp_path)
  with mirrored(URL, kept=lambda steps: set(steps[-2:])) as here:
    checkpoint(here, 4)
  assert whole_at() == [3, 4]


def test_what_has_not_changed_is_not_sent_again(s3, tmp_path):
  with mirrored(URL) as here:
    run_in(here, 1)
  mirror = Mirror(Bucket(URL), here)
  assert not mirror.sync()
  s3.requests.clear()
  (here / "metrics.jsonl").write_text("{}\n")
  assert not mirror.sync()
  assert {path.rpartition("/runs/a/")[2] for method, path in s3.requests if method == "PUT"} == {"metrics.jsonl"}


def test_a_checkpoint_whose_upload_was_cut_off_is_none(s3, tmp_path, monkeypatch, caplog):
  with mirrored(URL) as here:
    run_in(here, 1)
  checkpoint(here, 2)
  bucket = Bucket(URL)
  mirror = Mirror(bucket, here)
  put = bucket.put

  def killed(file, name):
    if name.endswith("manifest.json"):
      raise SystemExit
    put(file, name)

  monkeypatch.setattr(bucket, "put", killed)
  with pytest.raises(SystemExit):
    mirror.sync()
  assert "checkpoints/2/params/d/0" in bucket.list() and whole_at() == [1]
  elsewhere(monkeypatch, tmp_path)
  assert bring.local(URL) and not (bring.place(URL) / "checkpoints" / "2").exists()
  with mirrored(URL):
    assert "cut off" in caplog.text
  assert not [n for n in bucket.list() if n.startswith("checkpoints/2")]


def test_a_run_trained_anew_at_a_url_leaves_nothing_of_the_one_before(s3, tmp_path, monkeypatch, capsys):
  with mirrored(URL) as here:
    run_in(here, 1, 8)
    (here / "report.json").write_text('{"scores": {}}')
  elsewhere(monkeypatch, tmp_path, "reader")
  brought = pathlib.Path(bring.local(URL))
  assert checkpoints.steps(brought) == [8] and (brought / "report.json").exists()
  Bucket(URL).remove(list(Bucket(URL).list()))
  elsewhere(monkeypatch, tmp_path, "trainer")
  with mirrored(URL) as here:
    run_in(here, 2)
  elsewhere(monkeypatch, tmp_path, "reader")
  assert cli.main(["runs", URL]) == 0 and "finished" not in capsys.readouterr().out
  assert bring.local(URL) == str(brought)
  assert checkpoints.steps(brought) == [2] and not (brought / "report.json").exists()


def test_a_run_that_goes_on_to_more_steps_is_not_finished(tmp_path):
  run_in(tmp_path, 1, 2)
  (tmp_path / "report.json").write_text('{"scores": {}, "params_digest": "x"}')
  for steps, state in ((2, "finished, 2 steps"), (5, "at step 2 of 5")):
    (tmp_path / "config.json").write_text(json.dumps({"run": {"steps": steps}}))
    assert listing.about(tmp_path)["state"] == state


@pytest.mark.parametrize("fault", ["500", "reset", "slow"])
def test_what_fails_for_a_moment_is_tried_again(s3, tmp_path, fault, monkeypatch):
  s3.fault = buckets.some(3, fault)
  with mirrored(URL) as here:
    run_in(here, 1)
  assert whole_at() == [1]
  elsewhere(monkeypatch, tmp_path)
  s3.fault = buckets.some(3, fault)
  assert content(bring.place(URL) if bring.local(URL) else None) == content(here)


def test_a_bucket_that_is_away_delays_the_uploads_and_loses_nothing(s3, caplog):
  with mirrored(URL) as here:
    run_in(here, 1)
    mirror = Mirror(Bucket(URL), here)
    s3.fault = lambda method, path: "500" if method == "PUT" else ""
    assert "couldn't write" in mirror.sync()
    over = threading.Event()
    thread = threading.Thread(target=mirror.keep, args=(over, 0.05))
    thread.start()
    wait_for(lambda: "it is tried again" in caplog.text)
    s3.fault = lambda method, path: ""
    with caplog.at_level("INFO"):
      wait_for(lambda: "work again" in caplog.text)
    over.set()
    thread.join()
    assert whole_at() == [1]


def test_a_run_that_could_not_be_uploaded_says_where_it_is(s3):
  with pytest.raises(Stopped, match="whole in .*the same command uploads the rest"):
    with mirrored(URL) as here:
      run_in(here, 1)
      s3.fault = lambda method, path: "500" if "checkpoints" in path else ""
  s3.fault = lambda method, path: ""
  assert whole_at() == []
  with mirrored(URL):
    pass
  assert whole_at() == [1]


def test_uploads_slower_than_saves_bring_a_whole_checkpoint_each_time(s3, monkeypatch):
  bucket, here = Bucket(URL), place(URL)
  mirror = Mirror(bucket, here)
  run_in(here, 1)
  assert not mirror.sync()
  put, step = bucket.put, 3
  checkpoint(here, 2)
  checkpoint(here, 3)

  def slow(file, name):  # two saves go by meanwhile, upon which the one that is on its way goes from the disk
    nonlocal step
    if name.endswith("params/d/0"):
      shutil.rmtree(here / "checkpoints")
      step += 2
      checkpoint(here, step - 1)
      checkpoint(here, step)
    put(file, name)

  monkeypatch.setattr(bucket, "put", slow)
  for _ in range(3):
    newest = step
    assert not mirror.sync() and whole_at() == [newest]
  monkeypatch.setattr(bucket, "put", put)
  assert not mirror.sync() and whole_at() == [step - 1, step]


def test_a_save_that_is_under_way_is_no_failure_of_an_upload(s3):
  with mirrored(URL) as here:
    run_in(here, 1)
    (here / "samples" / "1").mkdir(parents=True)
    (here / "samples" / "1" / "a.png").write_bytes(b"x")
    (here / "checkpoints" / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    scandir = os.scandir

    def renamed(path):  # between a listing and the next one
      if "orbax-checkpoint-tmp" in str(path):
        raise FileNotFoundError(path)
      return scandir(path)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(os, "scandir", renamed)
      assert not Mirror(Bucket(URL), here).sync() and "samples/1/a.png" in Bucket(URL).list()


def test_a_checkpoint_that_is_half_removed_is_not_sent(s3):
  with mirrored(URL) as here:
    run_in(here, 1, 2)
    (here / "checkpoints" / "1" / "params" / "d" / "0").unlink()
    assert not Mirror(Bucket(URL), here).sync() and whole_at() == [2]


def test_of_a_damaged_checkpoint_in_the_bucket_the_one_before_is_brought_too(s3, tmp_path, monkeypatch):
  with mirrored(URL) as here:
    run_in(here, 1, 2, 3)
  bucket = Bucket(URL)
  damaged = bucket.read("checkpoints/3/params/d/0")[::-1]
  bucket.write("checkpoints/3/params/d/0", damaged)
  elsewhere(monkeypatch, tmp_path)

  def damage(folder):
    return "it is" if (folder / "params" / "d" / "0").read_bytes() == damaged else None

  with mirrored(URL, damage=damage) as here:
    assert sorted(p.name for p in (here / "checkpoints").iterdir()) == ["2", "3"]
    (here / "damaged").mkdir()
    (here / "checkpoints" / "3").rename(here / "damaged" / "3")  # as a start does
    assert "3" not in {p.name for p in (here / "checkpoints").iterdir()}
    checkpoint(here, 3)
  assert bucket.read("checkpoints/3/params/d/0") != damaged and whole_at() == [1, 2, 3]


def test_another_run_at_the_same_url_leaves_the_old_ones_files_alone(s3, caplog):
  with mirrored(URL) as here:
    run_in(here, 5)
  bucket = Bucket(URL)
  bucket.remove(bucket.list())  # as a user does who begins anew
  with mirrored(URL) as here:
    assert not (here / "config.json").exists() and "another run" in caplog.text
    run_in(here, 1)
  assert whole_at() == [1] and (here.parent / "a.before-1" / "checkpoints" / "5").is_dir()


def test_nothing_is_left_of_a_run_that_never_began(s3):
  with pytest.raises(BadRequest):
    with mirrored(URL):
      raise BadRequest("no such config")
  assert not Bucket(URL).list() and not place(URL).exists()


def test_a_run_is_one_commands_at_a_time(s3, monkeypatch):
  monkeypatch.setattr(remote_lock, "BEAT", 0.05)
  monkeypatch.setattr(remote_lock, "PATIENCE", 0.6)
  first = RemoteLock(Bucket(URL))
  with pytest.raises(BadRequest, match=f"in use: another command works there since .*process {os.getpid()}"):
    RemoteLock(Bucket(URL))
  first._over.set()  # dies without a word, on a machine that can't be asked
  first._thread.join()
  bucket = Bucket(URL)
  bucket.write("lock", json.dumps(json.loads(bucket.read("lock")) | {"machine": "another"}).encode())
  second = RemoteLock(bucket)
  second.release()
  assert "lock" not in bucket.list()


def test_the_lock_of_a_process_of_this_machine_that_died_is_nobodys(s3, monkeypatch):
  first = RemoteLock(Bucket(URL))
  first._over.set()
  first._thread.join()
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  Bucket(URL).write("lock", json.dumps(first._record | {"pid": gone.pid}).encode())
  monkeypatch.setattr(remote_lock.time, "sleep", lambda seconds: pytest.fail("it waited"))
  RemoteLock(Bucket(URL)).release()
  assert "lock" not in Bucket(URL).list()


def test_shards_of_prepared_data_come_when_they_are_read(s3, tmp_path, monkeypatch):
  made = tmp_path / "made"
  made.mkdir()
  (made / "prepared.json").write_text("{}")
  (made / "documents-00000.array_record").write_bytes(b"shard")
  with send.sent(URL) as folder:
    shutil.copytree(made, folder)
  here = bring.place(URL)
  assert bring.local(URL) == str(here) and not (here / "documents-00000.array_record").exists()
  assert bring.file(here / "documents-00000.array_record").read_bytes() == b"shard"
  assert bring.file(here / "documents-00001.array_record").exists() is False


def test_data_made_anew_at_a_url_leaves_nothing_of_the_data_before(s3, tmp_path, monkeypatch):
  bucket, here, names = Bucket(URL), bring.place(URL), [f"documents-{i:05d}.array_record" for i in range(3)]
  for made in (b"old", b"new"):
    bucket.remove(names)
    for name in ("prepared.json", *(names if made == b"old" else names[1:])):
      bucket.write(name, b"{}" if name == "prepared.json" else made)
    buckets.elsewhere(monkeypatch, tmp_path / "cache")  # another command on this machine
    bring.local(URL)
    shards = [here / name for name in names if bring.file(here / name).exists()]
    assert [p.read_bytes() for p in shards] == ([made] * 3 if made == b"old" else [made] * 2)
    s3.requests.clear()
    assert [bring.file(p).read_bytes() for p in shards] == [made] * len(shards) and not s3.requests  # not once more
  bucket.write(names[2], b"newer still")
  (here / names[2]).unlink()
  with pytest.raises(BadRequest, match="has changed since this command began: start it again"):
    bring.file(here / names[2])


def test_what_is_removed_from_a_buckets_folder_is_read_no_more(s3, tmp_path, monkeypatch):
  bucket = Bucket(URL)
  for name in ("a.tar", "deep/b.tar", "tokenizer.json", "token_names.json"):
    bucket.write(name, b"x")

  def found(bringing):
    buckets.elsewhere(monkeypatch, tmp_path / "cache")
    return sorted(content(pathlib.Path(bringing())))

  assert found(lambda: bring.local(URL)) == ["a.tar", "deep/b.tar", "token_names.json", "tokenizer.json"]
  bucket.remove(["deep/b.tar"])
  assert found(lambda: bring.local(URL)) == ["a.tar", "token_names.json", "tokenizer.json"]
  bucket.remove(["tokenizer.json", "token_names.json"])
  assert found(lambda: bring.only(URL, ("tokenizer.json", "a.tar"))) == ["a.tar", "token_names.json"]
  assert found(lambda: bring.local(URL)) == ["a.tar"]


def test_what_was_brought_is_told_apart_by_its_bucket_alone(s3, tmp_path, monkeypatch):
  bucket, stamps = Bucket(URL), []
  for name in ("sub/a.tar", "sub/b.tar"):
    bucket.write(name, b"x")
  for machine, bringing in (("one", [URL]), ("two", [f"{URL}/sub", URL]), ("two", [f"{URL}/sub/a.tar"]), ("other", [])):
    elsewhere(monkeypatch, tmp_path, machine)
    if not bringing:
      bucket.write("sub/a.tar", b"y")
    for url in bringing or [URL]:
      bring.local(url)
    there = bring.place(URL) / "sub"
    os.utime(there / "a.tar", (len(stamps), 0))
    stamps.append([bring.stamp(p) for p in (there / "a.tar", there / "b.tar", there)])
  assert bring.origin(there / "a.tar") == f"{URL}/sub/a.tar" and not bring.origin(tmp_path)
  assert stamps[0] == stamps[1] == stamps[2]
  assert [new == old for new, old in zip(stamps[3], stamps[0])] == [False, True, False]
  bucket.remove(["sub/b.tar"])
  alone = []
  for machine in ("one", "new"):
    elsewhere(monkeypatch, tmp_path, machine)
    bring.local(URL)
    alone.append(bring.stamp(bring.place(URL) / "sub"))
  assert alone[0] == alone[1] != stamps[3][2]
  (tmp_path / "own").write_bytes(b"x")
  os.utime(tmp_path / "own", ns=(5, 5))
  assert bring.stamp(tmp_path / "own") == (1, "5")


def test_a_file_and_a_folders_named_files_come_alone(s3):
  with send.sent(URL) as folder:
    run_in(folder, 1)
    (folder / "tokenizer.json").write_text("{}")
  assert pathlib.Path(bring.local(f"{URL}/tokenizer.json")).read_text() == "{}"
  bring.only(URL, ("tokenizer.json", "token_names.json"))
  assert not (bring.place(URL) / "checkpoints").exists()
  assert bring.local(f"{URL}/checkpoints/1").endswith("/checkpoints/1")
  with pytest.raises(BadRequest, match="no whole checkpoint of step 7: it has 1"):
    bring.local(f"{URL}/checkpoints/7")


def test_what_is_sent_is_there_as_a_whole_or_not_at_all(s3):
  with pytest.raises(BadRequest, match="nothing is left of it"):
    with send.sent(URL) as folder:
      run_in(folder, 0)
      s3.fault = lambda method, path: "500" if path.endswith("config.json") else ""
  s3.fault = lambda method, path: ""
  assert not Bucket(URL).list()
  Bucket(URL).write("a", b"")
  with pytest.raises(BadRequest, match="isn't empty"):
    with send.sent(URL):
      pass


@pytest.mark.parametrize("names, whole", [
    (["checkpoints/1/params/a", "checkpoints/2/params/a"], [1, 2]),  # converted, or of earlier versions
    (["checkpoints/1/params/a", "checkpoints/1/manifest.json", "checkpoints/2/params/a"], [1]),
    (["checkpoints/1/manifest.json", "checkpoints/1.unfinished", "checkpoints/3/manifest.json"], [3]),
    (["checkpoints/x/manifest.json", "checkpoints/1.unfinished"], []),
])  # fmt: skip
def test_which_checkpoints_of_a_bucket_are_whole(names, whole):
  assert remote_run.whole_steps(names) == whole


@pytest.mark.parametrize("url, said", [
    ("s3://nobody/a", "there is no bucket 'nobody'"), ("s3://mine/runs/nothing", "there is nothing at"),
    ("s3:///a", "names no bucket"), ("s3://mine/../a", r"by \.\."),
])  # fmt: skip
def test_what_is_not_there_is_one_line(s3, url, said, capsys):
  assert cli.main(["generate", url, "--prompt=x"]) == 2
  told = capsys.readouterr().err.strip()
  assert "\n" not in told and re.search(said, told)
  with pytest.raises(BadRequest, match=said):
    bring.local(url)


def test_missing_credentials_and_drivers_are_one_line(s3, monkeypatch, tmp_path):
  for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    monkeypatch.delenv(name)
  monkeypatch.setenv("HOME", str(tmp_path))
  s3fs = pytest.importorskip("s3fs")
  s3fs.S3FileSystem.clear_instance_cache()
  with pytest.raises(BadRequest, match="no credentials are found: `aws configure`"):
    bring.local(URL)
  monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3")  # which it has imported by now
  monkeypatch.setitem(sys.modules, "s3fs", None)
  s3fs.S3FileSystem.clear_instance_cache()
  with pytest.raises(BadRequest, match=r"needs s3fs: pip install 'orthus_jax\[s3\]'"):
    bring.local(URL)


def test_a_disk_that_is_too_small_is_told_ahead(s3, monkeypatch):
  with send.sent(URL) as folder:
    run_in(folder, 1)
  monkeypatch.setattr(bring.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 10))
  with pytest.raises(BadRequest, match="has 10 left: make room, or set ORTHUS_CACHE"):
    bring.local(URL)


def test_a_name_that_leads_out_of_its_folder_is_refused(s3, tmp_path):
  with pytest.raises(BadRequest, match="leads out of its folder"):
    bring.bring(Bucket(URL), tmp_path / "x", {"../a": bucket_lib.Entry(1, "")})


def test_runs_in_a_bucket_are_listed_and_verified(s3, capsys):
  with send.sent(f"{URL}/one") as folder:
    run_in(folder, 1, 2)
  with send.sent(f"{URL}/one_more") as folder:
    run_in(folder, 4, 9)
  with send.sent(f"{URL}/two/three") as folder:
    run_in(folder, 5)
  Bucket(f"{URL}/one").write("checkpoints/2.unfinished", b"")
  assert cli.main(["runs", URL, "--json"]) == 0
  told = {r["run"]: r for r in json.loads(capsys.readouterr().out)}
  one = told[f"{URL}/one"]
  assert one["checkpoints"] == [{"step": 1, "damage": None}] and one["unfinished"] == ["2.unfinished"]
  assert told[f"{URL}/two/three"]["step"] == 5 and len(told) == 3
  assert cli.main(["runs", "verify", f"{URL}/two/three/checkpoints/5"]) == 1  # its checksum is made up
  assert "holds other bytes" in capsys.readouterr().out
  assert cli.main(["runs", "verify", f"{URL}/one_more"]) == 1 and cli.main(["runs", "verify", URL]) == 1
  told = re.findall(r"^(\S+)  \S", capsys.readouterr().out, re.M)
  assert told[:2] == [f"{URL}/one_more/checkpoints/{step}" for step in (4, 9)] and len(told) == 2 + 4
  assert not bring.place(f"{URL}/one_more/checkpoints/4").exists()  # nor is the disk filled
  assert cli.main(["runs", f"{URL}/four"]) == 2 and cli.main(["runs", "watch", URL]) == 2


def test_google_storage_holds_a_run_too(monkeypatch, tmp_path):
  emulator = pytest.importorskip("gcp_storage_emulator.server")
  server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="mine")
  server.start()
  try:
    port = server._api._httpd.server_port if hasattr(server._api, "_httpd") else server._api._server.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    elsewhere(monkeypatch, tmp_path, "here")
    with mirrored("gs://mine/runs/a") as here:
      run_in(here, 1, 2)
    elsewhere(monkeypatch, tmp_path)
    bring.local("gs://mine/runs/a")
    assert whole_at("gs://mine/runs/a") == [1, 2]
    assert (bring.place("gs://mine/runs/a") / "checkpoints/2/manifest.json").read_bytes() == (
        here / "checkpoints/2/manifest.json"
    ).read_bytes()
  finally:
    server.stop()


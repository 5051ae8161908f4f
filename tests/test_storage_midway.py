"""Buckets that change or fail while something is under way: what came stays, what is gone goes, what is another is told."""

import os
import pathlib
import time

import buckets
import pytest

from orthus_jax.data.prepared import in_bucket, shards
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import LOST, BadRequest, Stopped
from orthus_jax.storage import bring, bucket as bucket_lib, send
from orthus_jax.storage.bucket import Bucket, Entry, Unreachable
from orthus_jax.storage.mirror import mirrored

URL = "s3://mine/runs/a"


def write(*names: str, what: bytes = b"x", url: str = URL) -> Bucket:
  bucket = Bucket(url)
  for name in names:
    bucket.write(name, what)
  return bucket


def brought(monkeypatch, tmp_path, url: str = URL) -> pathlib.Path:
  """By another command on this machine."""
  buckets.elsewhere(monkeypatch, tmp_path / "cache")
  return pathlib.Path(bring.local(url))


def names(folder: pathlib.Path) -> list[str]:
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".brought")


def failing(monkeypatch, what: str, name: str, error: Exception) -> None:
  """Has one of `Bucket`'s functions fail at an object of that name."""
  do = getattr(Bucket, what)

  def fails(self, *args):
    if name in [str(a) for a in args]:
      raise error
    return do(self, *args)

  monkeypatch.setattr(Bucket, what, fails)


def test_what_came_before_a_failure_needs_not_come_again(s3, tmp_path, monkeypatch):
  bucket = write("a.tar", "b.tar", "c.tar")
  with monkeypatch.context() as m, pytest.raises(BadRequest, match="can't be brought here: away"):
    m.setattr(bucket_lib, "_THREADS", 1)
    failing(m, "get", "c.tar", OSError("away"))
    brought(monkeypatch, tmp_path)
  bucket.remove(["a.tar"])
  s3.requests.clear()
  assert names(brought(monkeypatch, tmp_path)) == ["b.tar", "c.tar"]
  assert [p.split("/")[-1] for m, p in s3.requests if m == "GET" and p.endswith(".tar")] == ["c.tar"]


def test_what_a_killed_command_brought_is_noted_meanwhile(s3, tmp_path, monkeypatch):
  write("a.tar", "b.tar", "c.tar")
  monkeypatch.setattr(bring, "_EVERY", 0.0)
  note, noted = bring.brought.note, []

  def counted(url, target, new, **more):
    noted.append(len(new))
    note(url, target, new, **more)

  monkeypatch.setattr(bring.brought, "note", counted)
  brought(monkeypatch, tmp_path)
  assert min(noted) < 3 and noted[-1] == 3


def test_what_came_with_a_folder_above_goes_too(s3, tmp_path, monkeypatch):
  bucket = write("train/a.tar", "train/b.tar", "plans/x")
  folder = brought(monkeypatch, tmp_path)
  stale, fresh, plan = folder / f"train/.{'0' * 32}", folder / f"train/.{'1' * 32}", folder / "train/plans/row.npz"
  plan.parent.mkdir()
  for file in (stale, fresh, plan):
    file.write_bytes(b"")
  os.utime(stale, (time.time() - 7200,) * 2)
  bucket.remove(["train/a.tar"])
  assert names(brought(monkeypatch, tmp_path, f"{URL}/train")) == [fresh.name, "b.tar", "plans/row.npz"]
  assert "train/a.tar" not in bring.brought.index(folder)


def test_a_command_reads_the_shards_of_which_it_was_told(s3, tmp_path, monkeypatch):
  shard = "documents-00000.array_record"
  write("prepared.json", shard)
  here = brought(monkeypatch, tmp_path)
  with monkeypatch.context() as m:  # another command, once the data was made anew
    m.setattr(bring, "_told", {})
    write(shard, what=b"new")
    assert bring.file(brought(m, tmp_path) / shard).read_bytes() == b"new"
  bring._told[here] = {shard: ["before"]}
  with pytest.raises(BadRequest, match="documents-00000.array_record has changed since this command began: start it again"):
    bring.file(here / shard)


def test_a_shard_whose_bucket_is_away_is_waited_for(s3, tmp_path, monkeypatch, caplog):
  write("prepared.json", "documents-00000.array_record")
  here = brought(monkeypatch, tmp_path)
  away, times, waits = Unreachable("couldn't read it"), [], []
  monkeypatch.setattr(shards.time, "sleep", waits.append)

  def file(path):
    times.append(path)
    if len(times) < 3:
      raise away

  monkeypatch.setattr(bring, "file", file)
  found = shards.Shards([here / "documents-00000.array_record"], [1], BadRecords(max_share=1.0, total=1))
  found._bring(0)
  assert waits == [10.0, 30.0] and "couldn't read it; trying again in 30 s" in caplog.text
  monkeypatch.setattr(bring, "file", lambda path: (_ for _ in ()).throw(away))
  with pytest.raises(Stopped, match="couldn't read it: start the same command again once the bucket answers") as e:
    found.read(0)
  assert e.value.status == LOST and not found.bad.distinct


def test_a_run_that_never_began_says_why(s3, monkeypatch):
  with monkeypatch.context() as m, pytest.raises(BadRequest, match="no such config"), mirrored(URL):
    m.setattr(bucket_lib, "_WAITS", ())
    s3.fault = lambda method, path: "500" if method in ("DELETE", "POST") else ""
    raise BadRequest("no such config")


@pytest.mark.parametrize("error", [BadRequest("credentials have expired"), KeyboardInterrupt()])
def test_an_upload_that_ends_early_leaves_nothing(error, s3, monkeypatch):
  failing(monkeypatch, "put", "b", error)
  with pytest.raises(type(error)), send.sent(URL) as folder:
    folder.mkdir()
    for name in "ab":
      (folder / name).write_text("x")
  assert not Bucket(URL).list()


def test_a_bucket_that_is_away_is_one_line(s3, monkeypatch):
  monkeypatch.setattr(Bucket, "list", lambda self, below="": (_ for _ in ()).throw(Unreachable("couldn't list: away")))
  for use in (lambda: in_bucket.check(URL), lambda: in_bucket.laid_out(URL).__enter__(), lambda: send.sent(URL).__enter__()):
    with pytest.raises(BadRequest, match=r"^s3://mine/runs/a can't be (written to|read): couldn't list: away$"):
      use()


def test_credentials_for_what_lies_below_a_url_are_enough(s3, monkeypatch):
  bucket, app = write("a.txt"), s3._app
  empty = Bucket("s3://mine/runs/none")

  def limited(environ, start):
    if environ["PATH_INFO"].strip("/") == "mine" and "prefix=runs" not in environ.get("QUERY_STRING", ""):
      body = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
      start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
      return [body]
    return app(environ, start)

  monkeypatch.setattr(s3, "_app", limited)
  bucket.check()
  empty.check()
  with pytest.raises(BadRequest, match="there is no bucket 'other'"):
    Bucket("s3://other/runs").check()


def test_the_longest_names_can_be_brought(s3, tmp_path, monkeypatch):
  name = "x" * 251 + ".jpg"
  write(name)
  assert names(brought(monkeypatch, tmp_path)) == [name]


def test_runs_are_told_apart_in_one_pass():
  names = ["a/config.json", "a/checkpoints/1/d", "b/c/config.json", "b/c/x.json", "other/x", "config.txt"]
  found = {n: Entry(1, "t") for n in names}
  assert {f: list(own) for f, own in bring._by_folder(found, ["a", "b/c"]).items()} == {
      "a": ["config.json", "checkpoints/1/d"], "b/c": ["config.json", "x.json"],
  }  # fmt: skip
  assert bring._by_folder(found, [""]) == {"": found}

"""Runs of several processes in a bucket, each with a disk of its own: parts make a checkpoint, from which all go on."""

import json
import shutil
import zlib

import buckets
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import test_processes as pair

from orthus_jax.storage import bring, claim, remote_run
from orthus_jax.storage.bucket import Bucket
from orthus_jax.storage.mirror import place
from orthus_jax.storage.parts import Parts
from orthus_jax.training.checkpoints import manifest, needed_files, workdir as checkpoint

URL = "s3://mine/runs/a"


def written(folder, index, step=4):
  """What one of two processes writes: arrays' pieces of its own, and files that each writes."""
  there = folder / f"{step}.orbax-checkpoint-tmp"
  for name, data in {
      f"params/w/{index}.0": b"w%d" % index, f"params/array_metadatas/process_{index}": b"{}", "params/_METADATA": b"same",
      "commit_success.txt": b"%d" % index, "metrics/metrics": b"1",
      "_CHECKPOINT_METADATA": b"{}", **({"params/w/.zarray": b"{}"} if index == 0 else {}),
  }.items():  # fmt: skip
    (there / name).parent.mkdir(parents=True, exist_ok=True)
    (there / name).write_bytes(data)
  manifest.write(there, {"data": {"digest": f"of process {index}"}})
  return there


def two(tmp_path, attempt="a", count=2):
  made = []
  for i in range(count):
    folder = tmp_path / f"disk-{i}"
    folder.mkdir(exist_ok=True)
    made.append(Parts(Bucket(URL), folder, index=i, count=count, attempt=attempt))
  return made


def whole():
  return remote_run.whole_steps(Bucket(URL).list())


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0)])
def test_a_checkpoint_is_whole_once_every_part_is_there(s3, tmp_path, order):
  parts = two(tmp_path)
  for i, p in enumerate(parts):
    folder = written(tmp_path / f"disk-{i}", i)
    p.take(4, folder)
    shutil.rmtree(folder)  # it gave way to newer ones meanwhile
    assert not p.idle
  for n, i in enumerate(order):
    assert whole() == [] and (n == 0 or remote_run.unfinished(Bucket(URL).list()) == [4])
    parts[i].push()
  assert whole() == [4] and parts[0].whole == [4] and all(p.idle for p in parts)
  there = s3.objects("runs/a/checkpoints/4")
  assert there["params/w/0.0"] == b"w0" and there["params/w/1.0"] == b"w1" and there["commit_success.txt"] == b"0"
  assert not [n for n in there if n.startswith("parts/")]
  said = json.loads(there["manifest.json"])
  assert said["data"] == {"digest": "of process 0"} and "attempt" not in said
  assert {n: c for n, (_, c) in said["crc32"].items()} == {
      n: zlib.crc32(data) for n, data in there.items() if n not in ("manifest.json", "_CHECKPOINT_METADATA")
  }


def test_a_file_that_each_writes_is_process_0s_even_if_unknown_as_such(s3, tmp_path):
  parts = two(tmp_path)
  for i, p in enumerate(parts):
    folder = written(tmp_path / f"disk-{i}", i)
    (folder / "new_in_orbax").write_bytes(b"by %d" % i)
    manifest.write(folder)
    p.take(4, folder)
  for p in (parts[0], parts[1], parts[0]):
    p.push()
  bring.local(URL + "/checkpoints/4")
  assert manifest.damage(bring.place(URL) / "checkpoints/4") is None
  assert s3.objects("runs/a/checkpoints/4")["new_in_orbax"] == b"by 0"


def test_parts_of_an_earlier_start_dont_count(s3, tmp_path):
  old, new = two(tmp_path, "old"), two(tmp_path, "new")
  for i in (0, 1):
    old[i].take(4, written(tmp_path / f"disk-{i}", i))
  old[1]._send(4)
  new[0].push()
  assert whole() == []
  new[1].push()
  new[0].push()
  assert whole() == [4]


def test_what_an_earlier_start_left_is_known_by_its_processes(s3, tmp_path):
  first, second = two(tmp_path)
  assert first.left() is None
  for step in (2, 4):
    second.take(step, written(tmp_path / "disk-1", 1, step))
  assert two(tmp_path, "b")[1].left() == (4, "a") and two(tmp_path, count=3)[1].left() is None
  second.only(4)
  assert second.steps() == [4]
  second.only(None)
  assert second.idle and second.left() is None


def both_take(parts, tmp_path, step=4):
  for i, p in enumerate(parts):
    p.take(step, written(tmp_path / f"disk-{i}", i, step))


def test_a_part_that_was_sent_is_kept_until_the_next(s3, tmp_path):
  parts = two(tmp_path)
  both_take(parts, tmp_path)
  parts[1].push()
  assert parts[1].idle
  s3.fault = lambda method, path: "500" if method == "PUT" else ""
  assert parts[0].finish()
  s3.fault = lambda method, path: ""
  claim.clean(Bucket(URL))  # as the next start does
  again = two(tmp_path, "b")
  assert [p.left() for p in again] == [(4, "a")] * 2
  for p in again:
    p.only(4)
  for p in (again[0], again[1], again[0]):
    p.push()
  assert whole() == [4]
  both_take(again, tmp_path, 8)
  again[1].push()
  assert sorted(p.name for p in (tmp_path / "disk-1/.parts").iterdir()) == [".sent-8"]


def test_a_marker_that_cant_be_removed_is_removed_later(s3, tmp_path):
  parts = two(tmp_path)
  both_take(parts, tmp_path)
  parts[1].push()
  s3.fault = lambda method, path: "500" if method == "DELETE" and "unfinished" in path else ""
  with pytest.raises(OSError):
    parts[0].push()
  s3.fault = lambda method, path: ""
  assert whole() == [] and parts[0].finish() == "" and whole() == [4]


def test_a_part_sent_twice_marks_nothing_anew(s3, tmp_path, monkeypatch):
  parts = two(tmp_path)
  both_take(parts, tmp_path)
  parts[0].push()
  write = parts[1]._bucket.write

  def unheard(name, data):
    write(name, data)
    if name.endswith("parts/1.json"):
      raise OSError("the answer is lost")

  with monkeypatch.context() as patch, pytest.raises(OSError):
    patch.setattr(parts[1]._bucket, "write", unheard)
    parts[1].push()
  parts[0].push()
  assert whole() == [4]
  parts[1].push()
  assert whole() == [4] and parts[1].idle


def test_a_bucket_that_fails_while_it_waits_is_one_line(s3, tmp_path):
  parts = two(tmp_path)
  parts[0].take(4, written(tmp_path / "disk-0", 0))
  parts[0].push()
  s3.fault = lambda method, path: "500"
  assert "runs/a" in (said := parts[0].finish()) and "\n" not in said


def test_what_one_process_has_on_disk_and_what_is_a_part_lie_apart(s3):
  assert len({place(URL), place(URL, 0), place(URL, 1)}) == 3


def test_a_bucket_that_is_away_keeps_parts_on_disk(s3, tmp_path, monkeypatch):
  parts = two(tmp_path)
  for i, p in enumerate(parts):
    p.take(4, written(tmp_path / f"disk-{i}", i))
  s3.fault = lambda method, path: "500" if method == "PUT" else ""
  with pytest.raises(OSError):
    parts[0].push()
  assert "runs/a" in parts[1].finish() and not parts[1].idle
  s3.fault = lambda method, path: ""
  parts[1].push()
  assert parts[0].finish() == "" and whole() == [4]


def test_parts_that_never_come_are_told(s3, tmp_path, monkeypatch):
  from orthus_jax.storage import parts as parts_lib

  monkeypatch.setattr(parts_lib, "_PATIENCE", 0.1)
  first, _ = two(tmp_path)
  first.take(4, written(tmp_path / "disk-0", 0))
  assert "other processes' parts of the checkpoint of step 4 don't come" in first.finish()
  assert whole() == [] and not first.idle


class Of:
  """A sharding of which this process has some devices."""

  def __init__(self, sharding, devices):
    self._sharding, self._devices = sharding, devices

  def addressable_devices_indices_map(self, shape):
    return {d: i for d, i in self._sharding.devices_indices_map(shape).items() if d.id in self._devices}


@pytest.mark.parametrize("axes", [("a", "b"), ("b", None), (None, ("a", "b")), (None, None)])
@pytest.mark.parametrize("chunks", [(2, 4), (1, 24), (5, 7), (16, 24)])
def test_a_process_needs_the_chunks_that_its_devices_hold(tmp_path, axes, chunks):
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  own = {0, 5}
  place = Of(NamedSharding(mesh, PartitionSpec(*axes)), own)
  shape = (16, 24)
  (tmp_path / "params/x/y").mkdir(parents=True)
  (tmp_path / "params/x/y/.zarray").write_text(json.dumps({"shape": shape, "chunks": chunks}))
  (tmp_path / "params/one").mkdir()
  (tmp_path / "params/one/.zarray").write_text(json.dumps({"shape": [], "chunks": []}))
  grid = [f"params/x/y/{i}.{j}" for i in range(-(-16 // chunks[0])) for j in range(-(-24 // chunks[1]))]
  others = ["params/x/y/.zarray", "params/x/y2/9.9", "params/one/0", "params/_METADATA", "average/d/abc", "manifest.json"]
  shapes = {"params": {"x/y": jax.ShapeDtypeStruct(shape, "float32"), "one": jax.ShapeDtypeStruct((), "float32")}}
  places = {"params": {"x/y": place, "one": Of(NamedSharding(mesh, PartitionSpec()), own)}}
  held = np.zeros(shape, bool)
  for index in place.addressable_devices_indices_map(shape).values():
    held[index] = True
  wanted = {g for g in grid if _touches(held, g, chunks)}
  assert set(needed_files.of(tmp_path, grid + others, shapes, places)) == wanted | set(others)


def _touches(held, name, chunks):
  i, j = (int(k) for k in name.rsplit("/", 1)[1].split("."))
  return held[i * chunks[0] : (i + 1) * chunks[0], j * chunks[1] : (j + 1) * chunks[1]].any()


def test_a_chunk_that_the_bucket_lost_is_missed_by_those_that_need_it(s3, tmp_path):
  from orthus_jax.training.checkpoints import saver
  from orthus_jax.training.state import TrainState

  parts, folder = two(tmp_path)[0], tmp_path / "disk-0" / "checkpoints" / "4"
  (folder / "params/w").mkdir(parents=True)
  (folder / "params/w/.zarray").write_text(json.dumps({"shape": [4], "chunks": [2]}))
  (folder / "manifest.json").write_text(json.dumps({"crc32": {"params/w/0": [1, 1], "params/w/1": [1, 1]}}))
  Bucket(URL).write("checkpoints/4/params/w/0", b"x")
  parts.found = Bucket(URL).list()
  mesh = jax.make_mesh((2,), ("a",), devices=jax.devices()[:2])

  def state(w):
    return TrainState(step=w, trained={"w": w}, frozen={}, moments={}, ema={})

  def missing(devices):
    place_of = Of(NamedSharding(mesh, PartitionSpec("a")), devices)
    return saver._bring(parts, 4, folder, state(jax.ShapeDtypeStruct((4,), "float32")), state(place_of))

  assert missing({0}) is None and missing({1}) == "params/w/1 is missing in the bucket"


def test_what_lies_in_another_layout_is_needed_as_a_whole(tmp_path):
  names = ["params/d/0123", "params/manifest.ocdbt", "params/ocdbt.process_0/d/1", "metrics/metrics"]
  shapes = {"params": {"x": jax.ShapeDtypeStruct((4,), "float32")}}
  assert needed_files.of(tmp_path, names, shapes, {"params": {"x": None}}) == names
  assert [remote_run.is_data(n) for n in names] == [True, False, True, False]


def start(s3, tmp_path, config, name):
  """Two processes on two machines; returns what they said and how they ended."""
  port = pair.free_port()
  more = {**buckets.ENVIRONMENT, "AWS_ENDPOINT_URL": s3.url}
  both = [
      pair._start(
          4, config, f"--workdir={URL}", f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={i}",
          ORTHUS_CACHE=str(tmp_path / f"{name}-{i}"), **more,
      )
      for i in (0, 1)
  ]  # fmt: skip
  try:
    said = [p.communicate(timeout=900)[1] for p in both]
  finally:
    for p in both:
      p.kill()
  return said, [p.returncode for p in both]


@pytest.mark.slow
def test_two_machines_train_into_a_bucket_and_two_others_go_on_to_the_same_numbers(s3, tmp_path):
  # Arrays that are large enough to lie in pieces on the devices.
  config = f"--config={pair._config(tmp_path, model__transformer__mlp_width=9000)}"
  said, status = start(s3, tmp_path, config, "first")
  assert status == [0, 0], said[0][-3000:] + said[1][-3000:]
  assert whole() == [2, 3]
  for step in (2, 3):
    bring._bring.cache_clear()
    bring.local(f"{URL}/checkpoints/{step}")
    assert manifest.damage(bring.place(URL) / f"checkpoints/{step}") is None
  own = {p.name for p in (tmp_path / "first-1").rglob("*") if p.is_file()}
  assert "metrics.jsonl" not in own and "config.json" not in own  # process 0 alone writes those
  assert "tokenizer.json" in own  # which checkpoints tell of, on each disk alike
  report = json.loads(s3.objects("runs/a")["report.json"])
  params = checkpoint.load_params(URL)
  assert sum(v.size for v in params.values()) == report["parameters"]

  gone = [n for n in Bucket(URL).list() if n.startswith("checkpoints/3/") or n == "report.json"]
  Bucket(URL).remove(gone)
  said, status = start(s3, tmp_path, config, "second")
  assert status == [0, 0], said[0][-3000:] + said[1][-3000:]
  assert "going on from this run's own checkpoint of step 2" in said[0]
  assert json.loads(s3.objects("runs/a")["report.json"])["params_digest"] == report["params_digest"]
  assert whole() == [2, 3]
  # Each machine was brought its own pieces alone.
  pieces = {n for n in s3.objects("runs/a/checkpoints/2") if "mlp" in n and remote_run.is_data(n)}
  brought = [
      {n for n in pieces if (tmp_path / f"second-{i}/runs/s3/mine/runs" / name / "checkpoints/2" / n).is_file()}
      for i, name in enumerate(("a.process-0", "a.process-1"))
  ]
  assert brought[0] | brought[1] == pieces and not brought[0] & brought[1] and brought[0] and brought[1]

"""The quick tier of checkpoints: what it keeps, what is gone on from, and what is refused."""

import dataclasses
import errno
import json
import os
import re
import threading

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest
import tiny

from orthus_jax.errors import BadRequest
from orthus_jax.training import hosts
from orthus_jax.training.checkpoints import host_shards, local_slots, local_tier, workdir as checkpoint
from orthus_jax.training.checkpoints.local_tier import LocalTier
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.state import Layout, TrainState

MADE_WITH = {"data": {"documents": 3, "digest": "d"}, "tokenizer": "t"}


def mesh(fsdp: int = 4, tensor: int = 2) -> Mesh:
  return Mesh(mesh_utils.create_device_mesh((fsdp, tensor), jax.devices()[: fsdp * tensor]), ("fsdp", "tensor"))


def state(step: int, where: Mesh | None = None) -> TrainState:
  """One that lies in every way: split over one axis or two, or a copy on each device; with a scalar and bfloat16."""
  where = where or mesh()

  def put(value, *axes):
    return jax.device_put(value, NamedSharding(where, P(*axes)))

  values = {
      "a": put(jnp.arange(64, dtype=jnp.float32).reshape(8, 8) + step, "fsdp", "tensor"),
      "b": put(jnp.full((4, 8), step, jnp.bfloat16), None, "tensor"), "c": put(jnp.full(5, step, jnp.float32)),
  }  # fmt: skip
  moments = {"m": jax.tree.map(lambda x: x * 2, values), "count": put(jnp.int32(step))}
  frozen = {"codes": put(jnp.arange(24.0).reshape(8, 3), "fsdp")}
  return TrainState(step=put(jnp.int32(step)), trained=values, frozen=frozen, moments=moments, ema={})


def layout(s: TrainState) -> Layout:
  return Layout(None, jax.eval_shape(lambda: s), jax.tree.map(lambda x: x.sharding, s), frozenset(s.trained))


def tier(folder, where: Mesh | None = None, *, made_with=MADE_WITH, **changes) -> LocalTier:
  """The tier of a run in FOLDER/run, whose files lie in FOLDER/local."""
  (folder / "run").mkdir(exist_ok=True, parents=True)
  changes = dict(run__local_checkpoint_every=1, run__local_checkpoint_dir=str(folder / "local")) | changes
  return LocalTier(tiny.config(**changes), folder / "run", layout(state(0, where)), made_with)


def saved(folder, steps=(1, 2, 3)) -> LocalTier:
  made = tier(folder)
  for step in steps:
    made.save(state(step))
  made.wait()
  return made


def same(a: TrainState, b: TrainState) -> bool:
  equal = jax.tree.map(lambda x, y: x.sharding == y.sharding and bool((np.asarray(x) == np.asarray(y)).all()), a, b)
  return all(jax.tree.leaves(equal))


def durable(folder, steps=(), **run) -> Checkpointer:
  saver = Checkpointer(folder / "run", tiny.config(run__keep_checkpoints=9, **run).run)
  for step in steps:
    assert saver.save(state(step))
  assert not steps or saver.wait()
  return saver


def restored(folder, **changes) -> tuple[TrainState | None, LocalTier]:
  own, at = tier(folder, **changes), layout(state(0))
  return durable(folder).restore_newest(at.shapes, at.shardings, own), own


def newest(made: LocalTier):
  """The slot of the newest checkpoint: its two files."""
  files = {json.loads(p.read_text())["step"]: p for p in made.folder.glob("*.json")}
  return files[max(files)], files[max(files)].with_suffix(".bin")


def test_a_state_comes_back_whole_and_each_array_is_kept_once(tmp_path):
  made = saved(tmp_path)
  again = tier(tmp_path)
  assert again.steps(None) == [3, 2]
  for step in (3, 2):
    found, why = again.read(step)
    assert not why and same(found, state(step)) and found.trained["b"].dtype == jnp.bfloat16
  size = sum(x.nbytes for x in jax.tree.leaves(dataclasses.replace(state(3), frozen={})))
  assert newest(made)[1].stat().st_size == size  # though most lie on several of the eight devices
  assert sum(p.name.startswith("frozen") for p in made.folder.iterdir()) == 1
  assert made.folder.stat().st_mode & 0o077 == 0  # /dev/shm is everybody's


def test_what_no_step_changes_is_copied_and_written_once(tmp_path, monkeypatch):
  made = saved(tmp_path, steps=(1,))
  frozen = next(made.folder.glob("frozen*"))
  os.utime(frozen, (1, 1))
  taken, take = [], host_shards.Copies.take
  monkeypatch.setattr(host_shards.Copies, "take", lambda self, tree: taken.append(tree) or take(self, tree))
  made.save(state(2))
  made.wait()
  assert len(taken) == 1 and "frozen" not in taken[0]
  assert frozen.stat().st_mtime == 1 and newest(made)[0].name == "1.json"


def test_a_step_may_write_over_what_is_being_saved(tmp_path, monkeypatch):
  go, write = threading.Event(), local_slots._write
  monkeypatch.setattr(local_slots, "_write", lambda *args: go.wait(30) and write(*args))
  made, s = tier(tmp_path), state(1)
  made.save(s)
  spoilt = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)(s)
  jax.block_until_ready(spoilt)
  go.set()
  made.wait()
  assert same(tier_read(tmp_path, 1), state(1))


def tier_read(folder, step: int) -> TrainState:
  own = tier(folder)
  assert step in own.steps(None)
  return own.read(step)[0]


def test_the_newer_of_both_tiers_is_gone_on_from(tmp_path, caplog):
  saved(tmp_path, steps=(3, 4))
  durable(tmp_path, steps=(2,)).close()
  found, own = restored(tmp_path)
  assert same(found, state(4)) and own.taken == 4
  durable(tmp_path, steps=(4,)).close()
  found, own = restored(tmp_path)
  assert int(found.step) == 4 and own.taken is None  # of two of a step, the one that lasts
  found, own = restored(tmp_path, run__local_checkpoint_every=0)
  assert int(found.step) == 4 and own.taken is None and not own.due(1)
  assert "passed over" not in caplog.text


def _flip(about, data):
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)


HARMS = {
    "a bit": (_flip, "0.bin holds other bytes than were written"),
    "cut": (lambda about, data: os.truncate(data, 100), "0.bin has 100 bytes, not"),
    "gone": (lambda about, data: data.unlink(), "0.bin can't be read"),
    "frozen": (lambda about, data: _flip(about, next(data.parent.glob("frozen*"))), "frozen-.* holds other bytes"),
    "another of frozen": (lambda about, data: next(data.parent.glob("frozen*")).unlink(), "frozen-.* can't be read"),
    "no list": (lambda about, data: about.write_text(about.read_text().replace('"0.bin"', '"1.bin"')), "1.bin has|1.bin holds"),
    "no list at all": (lambda about, data: about.write_text(about.read_text().replace('"files"', '"f"')), "it lacks a file"),
    "a list that is cut": (lambda about, data: os.truncate(about, 50), ""),
    "killed in the midst": (lambda about, data: (about.unlink(), os.truncate(data, 100)), ""),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_one_gives_way_to_the_next(tmp_path, harm, caplog):
  made = saved(tmp_path)
  do, reason = HARMS[harm]
  do(*newest(made))
  found, own = restored(tmp_path)
  if "frozen" in harm:  # which both need
    assert found is None and own.taken is None
  else:
    assert same(found, state(2)) and own.taken == 2
  assert not reason or re.search(f"passed over the local checkpoint of step 3: ({reason})", caplog.text)
  own.save(state(3))  # its place is free again, and so is the frozen file's
  own.wait()
  assert same(tier_read(tmp_path, 3), state(3))


def test_a_local_one_stands_in_where_all_others_are_damaged(tmp_path):
  saved(tmp_path, steps=(3,))
  durable(tmp_path, steps=(2, 4)).close()
  for step in (2, 4):
    next((tmp_path / "run" / "checkpoints" / str(step)).rglob("d/*")).write_bytes(b"")
  found, own = restored(tmp_path)
  assert same(found, state(3)) and own.taken == 3
  assert checkpoint.steps(tmp_path / "run") == [2]  # that of step 4 is out of the way of the next
  _flip(*newest(own))
  for _ in range(2):  # and nothing is started over where the local one is damaged too
    with pytest.raises(BadRequest, match="all 1 checkpoints of .* are damaged"):
      restored(tmp_path)


def test_what_is_of_another_run_or_lies_otherwise_is_refused_in_a_line(tmp_path, caplog):
  saved(tmp_path)
  others = {
      "was trained with other settings": dict(run__seed=4),
      "saw other data, or another tokenizer": dict(made_with=MADE_WITH | {"tokenizer": "u"}),
      "was saved on fsdp 4 x tensor 2 with 1 process, and this is fsdp 2 x tensor 4 with 1 process": dict(where=mesh(2, 4)),
  }  # fmt: skip
  for why, changes in others.items():
    assert tier(tmp_path, **changes).steps(1) == []
    assert f"passed over a local checkpoint in {tmp_path}/local/run-" in caplog.text and f"of step 3 {why}" in caplog.text
    caplog.clear()
    assert tier(tmp_path, **changes).steps(3) == [] and not caplog.text  # nothing is lost by it
  assert tier(tmp_path, run__log_every=3, run__local_checkpoint_every=7).steps(1) == [3, 2]
  (tmp_path / "elsewhere" / "run").mkdir(parents=True)  # a copy of the run isn't the run
  (tmp_path / "elsewhere" / "run" / "run_id").write_bytes((tmp_path / "run" / "run_id").read_bytes())
  assert tier(tmp_path / "elsewhere", run__local_checkpoint_dir=str(tmp_path / "local")).steps(None) == []
  (tmp_path / "run" / "run_id").unlink()  # as by who removes a run, to do it anew
  assert tier(tmp_path).steps(None) == [] and "of step 3 is another run's" in caplog.text


class Pair:
  """Two processes, as two threads, of which each has all devices for its own."""

  def __init__(self, monkeypatch):
    self._own, self._meet, self._said = threading.local(), threading.Barrier(2, timeout=30), [None, None]
    monkeypatch.setattr(jax, "process_index", lambda: getattr(self._own, "index", 0))
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "gather", self._gather)

  def _gather(self, x):
    self._said[jax.process_index()] = x
    self._meet.wait()
    found = np.stack(self._said)
    self._meet.wait()
    return found

  def run(self, f):
    """What both say to f(index)."""
    found = [None, None]

    def one(i):
      self._own.index = i
      found[i] = f(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in (0, 1)]
    for t in threads:
      t.start()
    for t in threads:
      t.join()
    return found


def test_all_processes_go_on_from_what_all_have(tmp_path, monkeypatch, caplog):
  pair = Pair(monkeypatch)

  def train(i):
    made = tier(tmp_path)
    for step in (1, 2, 3, 4, 5)[: 5 - i]:  # the second is slower, and killed in the midst of its fourth
      made.save(state(step))
      made.wait()
    if i:
      newest(made)[0].unlink()

  def resume(i):
    own = tier(tmp_path)
    steps = own.steps(1)
    return steps, [own.read(s)[0].step.item() for s in steps]

  pair.run(train)
  assert pair.run(resume) == [([3], [3])] * 2
  assert caplog.text.count("process 1 lacks that of step 5") == 1
  caplog.clear()

  def spoil(i):
    own = tier(tmp_path)
    if i:
      _flip(*newest(own))
    return own.steps(None) == [3] and own.read(3)

  assert pair.run(spoil) == [(None, "process 1: 2.bin holds other bytes than were written"),
                             (None, "2.bin holds other bytes than were written")]


def test_a_full_disk_stops_nothing_and_is_told_once(tmp_path, monkeypatch, caplog):
  made = saved(tmp_path, steps=(1, 2))
  write = local_slots._write

  def full(file, arrays):
    write(file, arrays[:1])
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(local_slots, "_write", full)
  for step in (3, 4):
    made.save(state(step))
  made.wait()
  assert caplog.text.count("No space left on device") == 1 and "local checkpoint of step 3 couldn't be written" in caplog.text
  assert sorted(p.name for p in made.folder.iterdir() if "frozen" not in p.name) == ["1.bin", "1.json"]  # of step 2 alone
  monkeypatch.setattr(local_slots, "_write", write)
  assert int(restored(tmp_path)[0].step) == 2
  made.save(state(5))
  made.wait()
  assert int(restored(tmp_path)[0].step) == 5


def test_a_slow_disk_is_waited_for_and_told_once(tmp_path, monkeypatch, caplog):
  write = local_slots._write
  monkeypatch.setattr(local_slots, "_write", lambda *args: threading.Event().wait(0.2) or write(*args))
  saved(tmp_path, steps=(1, 2, 3))
  assert caplog.text.count("raise run.local_checkpoint_every, or name a faster disk") == 1
  assert tier(tmp_path).steps(None) == [3, 2]


def test_a_run_that_ends_leaves_nothing_and_one_that_breaks_leaves_all(tmp_path):
  made = saved(tmp_path)
  made.close(2)  # what lasts is older
  assert tier(tmp_path).steps(None) == [3, 2]
  tier(tmp_path, run__seed=5).close(2)  # a start by mistake
  assert tier(tmp_path).steps(None) == [3, 2]
  tier(tmp_path).close(None)
  assert tier(tmp_path).steps(None) == [3, 2]
  tier(tmp_path).close(3)
  assert not list((tmp_path / "local").iterdir())


@pytest.mark.parametrize("place, why", [
    ("gs://mine/local", "is in a bucket"), ("RUN/local", "is in the run's own directory"), ("FILE/x", "can't be written"),
])  # fmt: skip
def test_a_place_that_cannot_be_is_refused(tmp_path, place, why):
  (tmp_path / "file").touch()
  place = place.replace("RUN", str(tmp_path / "run")).replace("FILE", str(tmp_path / "file"))
  with pytest.raises(BadRequest, match=f"run.local_checkpoint_dir={place} .*{why}") as e:
    tier(tmp_path, run__local_checkpoint_dir=place)
  assert "\n" not in str(e.value)


def test_pieces_are_those_of_the_devices(monkeypatch):
  s = state(1)
  held = host_shards.pieces(layout(s).shapes, layout(s).shardings)
  assert [len([p for p in held if p.name == f"trained/{n}"]) for n in "abc"] == [8, 2, 1]
  taken = host_shards.Copies().take(s)
  assert [t.shape for t in taken] == [p.shape for p in held]
  assert host_shards.nbytes(held) == sum(x.nbytes for x in jax.tree.leaves(s))
  other = state(1, mesh(2, 4))
  assert host_shards.digest(held) != host_shards.digest(host_shards.pieces(layout(other).shapes, layout(other).shardings))


def test_the_default_place_is_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("ORTHUS_CACHE", str(tmp_path / "cache"))
  config = tiny.config(run__local_checkpoint_every=5)
  assert local_tier.directory(config, tmp_path / "run") == tmp_path / "cache" / "local_checkpoints"

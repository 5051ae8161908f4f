"""What a run saves, what it goes on from, and what it makes of damage."""

import dataclasses
import json
import logging
import os
import re
import resource
import shutil

import buckets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.config import MeshConfig, RunConfig
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.parallel.mesh import make_mesh
from orthus_jax.storage.mirror import mirrored
from orthus_jax.training import loop, step as step_lib
from orthus_jax.training.checkpoints import manifest, small_arrays, workdir as checkpoint
from orthus_jax.training.checkpoints.local_tier import LocalTier
from orthus_jax.training.checkpoints.saver import Checkpointer, read_state
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import TrainState, digest, plan_run
from orthus_jax.training.step_ahead import StepAhead
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()
# Of writes that a full disk stopped, asyncio hears too late.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# The smallest that has all a state has.
FAST = dict(run__steps=6, run__checkpoint_every=2, run__keep_checkpoints=3, optimizer__ema_decay=0.9,
            model__transformer__layers=1)  # fmt: skip


def state(step: int, size: int = 300) -> TrainState:
  values = {"a": jnp.arange(size, dtype=jnp.float32) + step, "b": jnp.full((4, 8), step, jnp.bfloat16)}
  return TrainState(
      step=jnp.int32(step), trained=values, frozen={"c": jnp.ones(3)}, moments={"m": values, "count": jnp.int32(step)},
      ema={"a": values["a"] * 2, "b": values["b"]},
  )  # fmt: skip


def like(s: TrainState):
  return jax.eval_shape(lambda: s), jax.tree.map(lambda x: x.sharding, s)


def same(a: TrainState, b: TrainState) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)))


def saved(folder, steps=(1, 2, 3), **run) -> Checkpointer:
  saver = Checkpointer(folder, RunConfig(**run))
  for step in steps:
    assert saver.save(state(step), loss=1.0 / step)
  assert saver.wait()
  return saver


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"), key=lambda p: p.stat().st_size)


def test_parameters_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(small_arrays, "SMALL", 64)  # "c" is kept among the small ones, "a" by itself
  saved(tmp_path, steps=(1,)).close()
  whole = checkpoint.load_params(tmp_path)
  for names in ({"a"}, {"b", "c"}, {"c"}, {"a", "b", "c"}):
    some = checkpoint.load_params(tmp_path, wanted=names.__contains__)
    assert set(some) == names
    jax.tree.map(np.testing.assert_array_equal, some, {n: whole[n] for n in names})


def test_a_state_comes_back_whole(tmp_path):
  saved(tmp_path).close()
  found = Checkpointer(tmp_path, RunConfig()).restore_newest(*like(state(0)))
  assert same(found, state(3)) and found.trained["b"].dtype == jnp.bfloat16
  assert [s for s in checkpoint.steps(tmp_path)] == [2, 3]
  assert all(manifest.damage(tmp_path / "checkpoints" / s) is None for s in ("2", "3"))
  assert manifest.has_checksums(tmp_path / "checkpoints" / "3")
  assert Checkpointer(tmp_path / "new", RunConfig()).restore_newest(*like(state(0))) is None


def test_the_newest_the_best_and_some_for_good_are_kept(tmp_path):
  saver = Checkpointer(tmp_path, RunConfig(keep_checkpoints=1, keep_every=4, keep_best=1))
  for step, loss in enumerate([3.0, 1.0, 2.0, 5.0, 4.0, 2.5, 2.2], start=1):
    saver.save(state(step), loss=loss)
  saver.close()
  assert checkpoint.steps(tmp_path) == [2, 4, 7]
  again = Checkpointer(tmp_path, RunConfig(keep_checkpoints=1, keep_every=4, keep_best=1))
  again.save(state(8), loss=9.0)
  again.save(state(9), loss=0.5)
  again.close()
  assert checkpoint.steps(tmp_path) == [4, 8, 9]


def _cut(folder):
  os.truncate(largest(folder), largest(folder).stat().st_size - 1)


def _flip(folder):
  file = largest(folder)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


HARMS = {
    "truncated": (_cut, "has [0-9,]+ bytes, not"),
    "changed": (_flip, "holds other bytes than were written"),
    "shard deleted": (lambda f: largest(f).unlink(), "is missing"),
    "an item deleted": (lambda f: shutil.rmtree(f / "optimizer"), "optimizer/.* is missing"),
    "emptied": (lambda f: (shutil.rmtree(f), f.mkdir()), "it is empty"),
    "manifest cut": (lambda f: os.truncate(f / "manifest.json", 20), "manifest.json can't be read"),
    "no manifest, truncated": (lambda f: ((f / "manifest.json").unlink(), [os.truncate(p, 10) for p in f.rglob("*")
                               if p.is_file()]), "_CHECKPOINT_METADATA can't be read"),
    "no manifest, arrays truncated": (lambda f: ((f / "manifest.json").unlink(), [os.truncate(p, p.stat().st_size // 2)
                                       for p in f.rglob("d/*")]), "has no checksums"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm, caplog, capsys):
  saved(tmp_path, keep_checkpoints=3).close()
  (tmp_path / "config.json").write_text("{}")
  do, reason = HARMS[harm]
  do(tmp_path / "checkpoints" / "3")
  assert cli.main(["runs", "verify", str(tmp_path)]) == (0 if "arrays" in harm else 1)
  said = capsys.readouterr().out.splitlines()
  logging.getLogger("orthus_jax").propagate = True
  assert len(said) == 3 and "checkpoints/2  whole" in said[1] and re.search(reason, said[2])
  saver = Checkpointer(tmp_path, RunConfig())
  assert same(saver.restore_newest(*like(state(0))), state(2))
  assert "passed over the checkpoint of step 3" in caplog.text
  assert (tmp_path / "damaged" / "3").is_dir() and checkpoint.steps(tmp_path) == [1, 2]
  saver.save(state(3))  # its place is free again
  saver.close()
  assert same(Checkpointer(tmp_path, RunConfig()).restore_newest(*like(state(0))), state(3))


def test_where_all_are_damaged_nothing_is_started_over(tmp_path):
  saved(tmp_path).close()
  for step in checkpoint.steps(tmp_path):
    _cut(tmp_path / "checkpoints" / str(step))
  for _ in range(2):  # nor the second time
    with pytest.raises(BadRequest, match="all 2 checkpoints of .* are damaged .step 3: .*bring one back"):
      Checkpointer(tmp_path, RunConfig()).restore_newest(*like(state(0)))
  assert checkpoint.steps(tmp_path) == [2, 3]
  with pytest.raises(BadRequest, match="are damaged"):
    checkpoint.find(tmp_path)
  with pytest.raises(BadRequest, match="is damaged"):
    checkpoint.find(tmp_path / "checkpoints" / "3")


def test_what_a_later_version_wrote_is_no_damage(tmp_path, capsys):
  saved(tmp_path).close()
  (tmp_path / "config.json").write_text("{}")
  file = tmp_path / "checkpoints" / "3" / "manifest.json"
  said = json.loads(file.read_text())
  assert said["format"] == 1
  file.write_text(json.dumps(said | {"format": 2}))
  message = r"checkpoints/3 was written by a later version of orthus_jax \(format 2\): update it to read this"
  for use in (lambda: Checkpointer(tmp_path, RunConfig()).restore_newest(*like(state(0))), lambda: checkpoint.find(tmp_path),
              lambda: Checkpointer(tmp_path, RunConfig()).latest()):  # fmt: skip
    with pytest.raises(BadRequest, match=message):
      use()
  assert checkpoint.steps(tmp_path) == [2, 3] and not (tmp_path / "damaged").exists()
  assert cli.main(["runs", "verify", str(tmp_path)]) == 1 and cli.main(["runs", str(tmp_path)]) == 0
  assert capsys.readouterr().out.count("was written by a later version") == 2


@pytest.mark.parametrize("change, said", [
    (lambda s: dataclasses.replace(s, trained=s.trained | {"a": s.trained["a"].astype(jnp.bfloat16)}), "params: a is float32"),
    (lambda s: dataclasses.replace(s, frozen={}), "params has an array 'c' that is unknown here"),
    (lambda s: dataclasses.replace(s, frozen=s.frozen | {"d": jnp.ones(2)}), "params lacks the array 'd'"),
    (lambda s: s, "it holds no running average, which optimizer.ema_decay asks for"),
])  # fmt: skip
def test_a_whole_checkpoint_of_another_model_is_no_damage(tmp_path, change, said):
  saver = Checkpointer(tmp_path, RunConfig())
  saver.save(dataclasses.replace(state(3), ema={}) if "average" in said else state(3))
  saver.close()
  with pytest.raises(BadRequest, match=f"isn't damaged, but isn't of this run's model and optimizer: {said}") as e:
    Checkpointer(tmp_path, RunConfig()).restore_newest(*like(change(state(0))))
  assert "\n" not in str(e.value)
  assert checkpoint.steps(tmp_path) == [3] and not (tmp_path / "damaged").exists()


def test_what_was_being_written_is_no_checkpoint(tmp_path, caplog):
  saved(tmp_path).close()
  half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-17"
  shutil.copytree(tmp_path / "checkpoints" / "3", half)
  assert checkpoint.find(tmp_path) == (tmp_path, 3)
  saver = Checkpointer(tmp_path, RunConfig())
  assert int(saver.restore_newest(*like(state(0))).step) == 3 and not half.exists()
  assert "passed over the checkpoint of step 4: its writing never ended" in caplog.text


def test_a_full_disk_loses_nothing(tmp_path, caplog):
  saver = saved(tmp_path, steps=(1,))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  big = 200_000  # bytes that don't compress
  noise = {"a": jnp.asarray(np.random.default_rng(0).standard_normal(big), jnp.float32), "b": state(2).trained["b"]}
  full = TrainState(step=jnp.int32(2), trained=noise, frozen={"c": jnp.ones(3)}, moments={"m": noise}, ema=noise)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    saver.save(full)
    assert not saver.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "the checkpoint of step 2 failed" in caplog.text and "the newest complete one is step 1" in caplog.text
  assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name[0].isdigit()] == ["1"]  # and no half one
  assert saver.latest() == 1
  assert saver.save(state(3)) and saver.wait()  # room has been made
  saver.close()
  assert checkpoint.steps(tmp_path) == [1, 3]


# --- the run --------------------------------------------------------------------------------------------------------


def task(config) -> OrthusTask:
  return OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))


def train(folder, **changes) -> loop.Result:
  config = tiny.config(**(FAST | changes))
  checkpoint.open_workdir(folder, config)
  return loop.train(config, folder, task(config))


def metrics(folder):
  return {r["step"]: r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder, config = tmp_path_factory.mktemp("whole") / "run", tiny.config(**FAST)
  checkpoint.open_workdir(folder, config)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "jit_step", None)  # the step that was compiled ahead is taken: those of the others have its numbers
    return folder, loop.train(config, folder, task(config), ahead=StepAhead(config))


def rewind(run, to, step: int):
  """A copy of a run as it was after a step."""
  shutil.copytree(run, to)
  for later in checkpoint.steps(to):
    if later > step:
      shutil.rmtree(to / "checkpoints" / str(later))
  return to


@pytest.mark.slow
def test_a_run_goes_on_from_a_damaged_checkpoint_with_the_same_numbers(whole, tmp_path, caplog):
  run = rewind(whole[0], tmp_path / "run", 4)
  _flip(run / "checkpoints" / "4")
  with caplog.at_level("INFO"):
    assert train(run).params_digest == whole[1].params_digest
  assert "holds other bytes" in caplog.text and "going on from this run's own checkpoint of step 2" in caplog.text


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_local_checkpoint_with_the_same_numbers(whole, tmp_path, caplog, monkeypatch):
  run = rewind(whole[0], tmp_path / "run", 2)
  local = dict(run__checkpoint_every=0, run__local_checkpoint_every=1, run__local_checkpoint_dir=str(tmp_path / "local"))
  config, mesh, save, steps = tiny.config(**FAST | local), make_mesh(MeshConfig()), LocalTier.save, []
  layout, _ = plan_run(config, task(config).init, optimizer=make_optimizer(config.optimizer, config.run), mesh=mesh)
  tier = LocalTier(config, run, layout, checkpoint.made_with(run, task(config).contents()))
  for step in (2, 4):  # what the run had saved when it was killed, after its fourth step
    tier.save(read_state(whole[0] / "checkpoints" / str(step), layout.shapes, layout.shardings))
  tier.wait()
  monkeypatch.setattr(LocalTier, "save", lambda self, s: save(self, s) or steps.append(int(s.step)))
  monkeypatch.setattr(step_lib, "_COPIED_BYTES", 0)  # the state is donated, as large ones are; that of the whole run wasn't
  with caplog.at_level("INFO"):
    again = train(run, **local)
  assert again.params_digest == whole[1].params_digest and again.steps == 2 and steps == [5]
  assert f"going on from this run's local checkpoint of step 4 in {tmp_path}/local/run-" in caplog.text
  assert checkpoint.steps(run) == [2, 6] and not list((tmp_path / "local").iterdir())


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_machine_with_the_same_numbers(whole, tmp_path, monkeypatch):
  url = "s3://mine/run"
  with buckets.s3() as server:
    for name, value in {**buckets.ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
      monkeypatch.setenv(name, value)
    server.make("mine")
    monkeypatch.setenv("ORTHUS_CACHE", str(tmp_path / "one"))
    with mirrored(url) as here:
      rewind(whole[0], tmp_path / "run", 4)
      shutil.copytree(tmp_path / "run", here, dirs_exist_ok=True)
    monkeypatch.setenv("ORTHUS_CACHE", str(tmp_path / "two"))
    with mirrored(url) as there:
      assert checkpoint.steps(there) == [4] and there != here
      assert train(there).params_digest == whole[1].params_digest
    assert metrics(there).keys() == metrics(whole[0]).keys()
    params = checkpoint.load_params(url, average=False)
  assert digest(params) == whole[1].params_digest


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices_with_the_same_batches(whole, tmp_path):
  run = rewind(whole[0], tmp_path / "run", 2)
  (run / "metrics.jsonl").unlink()
  changed = train(run, mesh__fsdp=2, mesh__tensor=2, mesh__data=2, optimizer__accumulation=2, run__keep_checkpoints=1)
  a, b = metrics(whole[0]), metrics(run)
  assert sorted(b) == [3, 4, 5, 6]
  for step, row in b.items():
    assert row["batch_digest"] == a[step]["batch_digest"]
    assert row["loss"] == pytest.approx(a[step]["loss"], rel=1e-5)
  assert len({r["batch_digest"] for r in a.values()}) == 6
  for n, v in whole[1].params.items():
    np.testing.assert_allclose(changed.params[n], v, rtol=2e-5, atol=2e-5, err_msg=n)
  with pytest.raises(BadRequest, match="run.seed differs"):
    checkpoint.check_workdir(run, tiny.config(**FAST, run__seed=5, mesh__fsdp=4))


@pytest.mark.slow
def test_the_order_of_what_a_run_starts_from(whole, tmp_path, caplog):
  source = str(rewind(whole[0], tmp_path / "source", 4) / "checkpoints" / "2")
  caplog.set_level("INFO")
  both = dict(run__resume_from=source, run__init_from=[["", str(whole[0])]])
  assert train(tmp_path / "a", **both).params_digest == whole[1].params_digest  # the whole state, and the step
  assert "going on from step 2 of" in caplog.text and "(run.resume_from)" in caplog.text
  caplog.clear()
  again = rewind(tmp_path / "a", tmp_path / "b", 4)
  assert train(again, **both).params_digest == whole[1].params_digest
  assert "own checkpoint of step 4, not from run.resume_from" in caplog.text
  caplog.clear()
  first = train(tmp_path / "c", run__init_from=[["", str(whole[0])]])
  assert "starting at step 0: all weights from" in caplog.text and sorted(metrics(tmp_path / "c"))[0] == 1
  assert first.params_digest != whole[1].params_digest
  with pytest.raises(BadRequest, match="isn't a state of this model and optimizer"):
    train(tmp_path / "d", run__resume_from=source, model__transformer__mlp_width=32)
  with pytest.raises(BadRequest, match="past run.steps=1: raise it"):
    train(tmp_path / "e", run__resume_from=source, run__steps=1)


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_ends_well_once_there_is_room(whole, tmp_path, caplog):
  run = rewind(whole[0], tmp_path / "run", 2)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    with pytest.raises(Stopped, match="the last checkpoint couldn't be written"):
      train(run)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert checkpoint.steps(run) == [2] and "the newest complete one is step 2" in caplog.text
  assert not list((run / "checkpoints").glob("*tmp*"))
  assert train(run).params_digest == whole[1].params_digest
  assert digest(checkpoint.load_params(run, average=False)) == whole[1].params_digest


def test_runs_are_listed(tmp_path, capsys):
  saved(tmp_path / "a", steps=(1, 2)).close()
  checkpoint.open_workdir(tmp_path / "a", tiny.config())
  (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 3, "loss": 1.25}\n{"step": 4, "lo')
  (tmp_path / "a" / "checkpoints" / "3.orbax-checkpoint-tmp-1").mkdir()
  checkpoint.open_workdir(tmp_path / "b", tiny.config())
  report = {"params_digest": "abc", "scores": {"single_object": 0.9, "open_accuracy": 0.8, "other": 0.1}}
  (tmp_path / "b" / "report.json").write_text(json.dumps(report))
  largest(tmp_path / "a" / "checkpoints" / "1").unlink()
  assert cli.main(["runs", str(tmp_path)]) == 0
  said = capsys.readouterr().out
  assert "a  at step 3 of 4, loss 1.25\n  checkpoints  2\n  damaged      1: " in said
  assert "unfinished   3.orbax-checkpoint-tmp-1" in said
  scores = "  scores       single_object 0.9, open_accuracy 0.8\n  digest       abc"
  assert f"b  finished, 4 steps\n  checkpoints  none\n{scores}" in said
  assert cli.main(["runs", str(tmp_path), "--json"]) == 0
  assert [r["run"] for r in json.loads(capsys.readouterr().out)] == [str(tmp_path / n) for n in "ab"]
  assert cli.main(["runs", "verify", str(tmp_path / "a" / "checkpoints" / "2"), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)[0]["damage"] is None
  for bad in (["runs", str(tmp_path / "no")], ["runs", str(tmp_path / "a" / "checkpoints")], ["runs", "verify"],
              ["runs", "verify", str(tmp_path / "b")], ["runs", "--jason"]):  # fmt: skip
    assert cli.main(bad) == 2
    assert capsys.readouterr().err.count("\n") == 1

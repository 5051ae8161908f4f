"""Signals, hangs, numbers that aren't finite: how a run ends, and what it says."""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import quick
import tiny

from orthus_jax import errors
from orthus_jax.config import RunConfig, to_dict
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import Stopped
from orthus_jax.training import goodput, loop, preemption
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.guard import Guard
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()


# --- numbers --------------------------------------------------------------------------------------------------------


def guard(**run) -> Guard:
  return Guard(RunConfig(**run), document_ids=lambda step: [f"d{step}-{i}" for i in range(30)], last_good=lambda: 7)


def watch(g: Guard, losses, skipped=()) -> None:
  for step, loss in enumerate(losses, start=1):
    g.saw(step, {"loss": loss, "skipped": float(step in skipped)})
  g.catch_up()


def test_skipped_updates_are_counted_with_their_documents(caplog):
  g = guard(max_skipped=3)
  watch(g, [1.0, float("nan"), 3.0, float("inf"), 2.0], skipped=(2, 3, 4)[:2] + (5,))
  assert g.skipped == 3 and "skipped the update of step 2, as the loss is nan; its documents: d1-0, d1-1" in caplog.text
  assert "step 3, as the gradient isn't finite" in caplog.text and "and 10 more" in caplog.text
  said = "3 updates in a row were skipped, the last at step 3.*last good checkpoint is that of step 7"
  with pytest.raises(Stopped, match=said):
    watch(guard(max_skipped=3), [1.0] * 9, skipped=(1, 2, 3))


def test_a_loss_that_jumps_is_logged_once(caplog):
  noise = np.random.default_rng(0).normal(2.0, 0.05, 300)
  noise[200:205] = 4.0
  watch(guard(), noise)
  assert caplog.text.count("the loss jumped to 4 at step 201") == 1 == caplog.text.count("jumped")
  assert "its documents: d200-0" in caplog.text
  caplog.clear()
  watch(guard(spike_deviations=0.0), noise)
  falling = 5 * np.exp(-np.arange(300) / 60) + np.random.default_rng(1).normal(0, 0.1, 300)
  watch(guard(), falling)
  assert not caplog.text


def test_the_score_of_a_checkpoint_is_the_mean_since_the_last():
  g = guard()
  watch(g, [1.0, 2.0, float("nan"), 3.0], skipped=(3,))
  assert g.mean_loss() == 2.0 and g.mean_loss() is None


class Spoiled(OrthusTask):
  """Some steps' weights aren't finite."""

  def __init__(self, config, steps):
    super().__init__(config, Pipeline(tiny.TinySource(), TK, config))
    self._steps = steps

  def batch(self, step, rows=None):
    batch = super().batch(step, rows)
    if step in self._steps:
      batch = batch._replace(text_weight_BT=np.where(batch.text_weight_BT > 0, np.nan, 0).astype(np.float32))
    return batch

  def batches(self, start, stop, rows=None):
    return ((step, self.batch(step, rows)) for step in range(start, stop))


@pytest.mark.slow
def test_an_update_that_is_not_finite_leaves_the_state_alone(tmp_path, caplog):
  config = tiny.config(
      run__steps=4, run__checkpoint_every=1, run__keep_checkpoints=9, run__max_skipped=2, optimizer__ema_decay=0.9,
      model__transformer__layers=1,
  )
  checkpoint.open_workdir(tmp_path / "a", config)
  loop.train(config, tmp_path / "a", Spoiled(config, {2}))
  after = [checkpoint.load_params(tmp_path / "a" / "checkpoints" / str(s), average=a) for s in (2, 3, 4) for a in (0, 1)]
  for x, y in zip(after[:2], after[2:4]):
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])
  assert any((x != y).any() for x, y in zip(after[2].values(), after[4].values()))
  assert all(np.isfinite(v).all() for v in after[4].values())
  assert "skipped the update of step 3" in caplog.text and "tiny-" in caplog.text
  rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
  assert rows[2]["loss"] is None and rows[3]["skipped"] == 1 and rows[3]["loss"] > 0

  checkpoint.open_workdir(tmp_path / "b", config)
  with pytest.raises(Stopped, match="2 updates in a row were skipped"):
    loop.train(config, tmp_path / "b", Spoiled(config, {1, 2, 3}))


# --- processes ------------------------------------------------------------------------------------------------------


def write_config(folder: Path, **changes) -> str:
  data = tiny.write_folder(folder / "pictures", n=12)
  tiny.tokenizer().save(folder)
  tree = to_dict(tiny.config(
      data__path=str(data), data__tokenizer=str(folder), data__cache_features=True, model__transformer__layers=1,
      **{"run__steps": 100_000, "run__batch_size": 8} | changes,
  ))  # fmt: skip
  file = folder / "config.py"
  file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")
  return f"--config={file}"


def start(*argv: str, program: str | None = None) -> subprocess.Popen:
  environment = os.environ | quick.environment() | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, *(["-c", program] if program else ["-m", "orthus_jax.cli"]), "train", *argv]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(workdir: Path, process: subprocess.Popen, step: int = 1) -> None:
  end = time.monotonic() + 300
  while time.monotonic() < end and process.poll() is None:
    if (workdir / "metrics.jsonl").is_file() and (workdir / "metrics.jsonl").read_text().count("\n") >= step:
      return
    time.sleep(0.05)
  raise AssertionError(f"no step {step}: {process.communicate()[1][-2000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, 130)])
def test_a_signal_saves_once_and_a_run_goes_on(tmp_path, number, status):
  config, run = write_config(tmp_path), tmp_path / "run"
  process = start(config, f"--workdir={run}")
  wait_for_step(run, process, 3)
  begin = time.monotonic()
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == status and time.monotonic() - begin < 30
  assert f"stopped by {number.name} after step" in said and "which is saved; the same command goes on" in said
  assert "Traceback" not in said
  (step,) = checkpoint.steps(run)
  again = start(config, f"--workdir={run}")
  wait_for_step(run, again, step + 2)
  again.kill()
  assert f"own checkpoint of step {step}" in again.communicate()[1]
  rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()[:step + 2]]
  assert rows == list(range(1, step + 3))


@pytest.mark.slow
def test_signals_before_the_first_step_and_second_ones_stop_at_once(tmp_path):
  config = write_config(tmp_path)
  waits = (
      "import time, sys; from orthus_jax.training import {0};"
      "{0}.{1} = lambda *a, **k: (print('here', flush=True), time.sleep(300));"
      "from orthus_jax import cli; sys.exit(cli.main())"
  )
  early = start(config, f"--workdir={tmp_path / 'a'}", program=waits.format("loop", "plan_run"))
  assert early.stdout.readline() == "here\n"
  early.send_signal(signal.SIGTERM)
  _, said = early.communicate(timeout=30)
  assert early.returncode == errors.PREEMPTED and said.endswith("orthus: stopped; there was nothing to save\n")
  assert goodput.read(tmp_path / "a")[-1]["end"] == "stopped"  # or it would be one of those in vain
  # The save hangs.
  late = start(config, f"--workdir={tmp_path / 'b'}", program=waits.format("loop", "_save_last"))
  wait_for_step(tmp_path / "b", late)
  late.send_signal(signal.SIGTERM)
  assert late.stdout.readline() == "here\n"
  time.sleep(3 * preemption._ONE_REQUEST)  # two at once are one request
  late.send_signal(signal.SIGTERM)
  _, said = late.communicate(timeout=30)
  assert late.returncode == errors.AT_ONCE and "a second signal: stopping at once" in said


@pytest.mark.slow
def test_a_hung_step_ends_the_process_with_all_stacks(tmp_path):
  config = write_config(tmp_path, run__hang_timeout=4.0, run__checkpoint_every=2)
  program = (
      "import sys, time; from orthus_jax.training import tasks\n"
      "def hang(self, step, state, graphdef, batch):\n"
      "  if step == 5: time.sleep(300)\n"
      "  return state\n"
      "tasks.OrthusTask.after_step = hang\n"
      "from orthus_jax import cli; sys.exit(cli.main())"
  )
  process = start(config, f"--workdir={tmp_path / 'run'}", program=program)
  _, said = process.communicate(timeout=120)
  assert process.returncode == errors.LOST, said[-2000:]
  assert "nothing has happened for 4 s after step 4" in said and "The newest checkpoint is that of step 4" in said
  assert "in hang" in said and said.count("hread 0x") >= 2  # the main thread's stack, and the others'


def start_pair(config: str, run: Path, *more: str) -> list[subprocess.Popen]:
  with socket.create_server(("", 0)) as s:
    where = f"--coordinator=localhost:{s.getsockname()[1]}"
  return [start(config, f"--workdir={run}", where, "--processes=2", f"--process_id={i}", *more) for i in (0, 1)]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
  config, run = write_config(tmp_path), tmp_path / "run"
  pair = start_pair(config, run)
  try:
    wait_for_step(run, pair[0], 3)
    begin = time.monotonic()
    pair[1].send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=60)[1] for p in pair]
    assert [p.returncode for p in pair] == [errors.PREEMPTED] * 2 and time.monotonic() - begin < 30, said
    stopped = {line for text in said for line in text.splitlines() if "stopped by SIGTERM" in line}
    assert len(stopped) == 1 and "which is saved" in stopped.pop()
    assert len(checkpoint.steps(run)) == 1
  finally:
    for p in pair:
      p.kill()


@pytest.mark.slow
@pytest.mark.parametrize("lost, earlier, status", [(0, 2, 1), (1, 1, errors.LOST)])
def test_the_process_that_is_left_ends_with_its_stacks(tmp_path, lost, earlier, status):
  config, run = write_config(tmp_path), tmp_path / "run"
  run.mkdir()
  for n in range(earlier):  # starts that failed as this one does
    line = {"start": n + 1, "time": 1e9 + n, "step": 0, "part": "step", "seconds": {"startup": 0.5}, "end": "failed"}
    with (run / "goodput.jsonl").open("a") as file:
      print(json.dumps(line), file=file)
  pair = start_pair(config, run)
  try:
    wait_for_step(run, pair[0], 3)
    pair[lost].kill()
    said = pair[1 - lost].communicate(timeout=200)[1]
    assert pair[1 - lost].returncode == status, said[-3000:]
    assert ("3 starts in a row" in said) == (status == 1), said[-3000:]
    assert "hread 0x" in said, said[-3000:]
  finally:
    for p in pair:
      p.kill()


@pytest.mark.slow
def test_the_benchmark_of_faults_loses_nothing(tmp_path):
  program = Path(__file__).parent.parent / "benchmarks" / "faults.py"
  done = subprocess.run(
      [sys.executable, str(program), "--short", "--only=data,kill", f"--keep={tmp_path}"], capture_output=True, text=True,
      timeout=900, env=os.environ | quick.environment(),
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  lines = [line.split() for line in done.stdout.splitlines()[1:] if not line.startswith("  (")]
  assert len(lines) >= 12 and any(line[0] == "SIGKILL," for line in lines)

"""`orthus runs watch`: how a run is doing, from its files alone."""

import contextlib
import json
import logging
import re
import time

import pytest
import tiny

from orthus_jax import cli, lock
from orthus_jax.commands import runs
from orthus_jax.commands.watch_page import sparkline
from orthus_jax.output import Output
from orthus_jax.training import goodput, remarks
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.remarks import Remarks
from orthus_jax.training.snapshot import Reader

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
  """No line of a run's time is written but those that a test asks for, however slow the machine is."""
  monkeypatch.setattr(goodput, "_EVERY", 1e6)


@contextlib.contextmanager
def a_run(folder, *, part="step", steps=400, done=100, hosts=("nodea", "nodeb")):
  """A workdir in which a command of 100 s is at work: 20 s to start, and 0.8 s a step."""
  checkpoint.open_workdir(folder, tiny.config(run__steps=steps))
  (folder / "checkpoints" / "80").mkdir(parents=True)
  (folder / "samples").mkdir()
  (folder / "samples" / "000080.png").touch()
  clock = [0.0]
  with lock.hold(folder):
    ledger = Ledger(0.0, clock=lambda: clock[0], now=lambda: NOW - 100 + clock[0])
    ledger.keep(folder, hosts=list(hosts))
    clock[0] = 20.0
    ledger.enter("step")
    ledger.goes_on_from(0)
    clock[0] = 100.0
    ledger.did(done)
    ledger.enter(part)
    ledger.write()
    with (folder / "metrics.jsonl").open("a") as f:
      for step in range(10, done + 1, 10):
        row = {"step": step, "loss": 100 / step, "tokens_per_second": 1234.5, "straggler": 1.0, "bad": None}
        f.write(json.dumps(row) + "\n")
    yield ledger


def printed(capsys, *argv) -> str:
  assert cli.main(["runs", "watch", *map(str, argv)]) == 0
  return capsys.readouterr().out


def _without_ages(said: str) -> str:
  return re.sub(r"[\d.]+ s ago *", "", said)


def test_a_page_tells_all_of_a_run(tmp_path, capsys):
  run = tmp_path / "a"
  with a_run(run):
    (run / remarks.FILE).write_text(
        "2026-11-29 01:02:03 INFO starting\n2026-11-29 01:02:04 WARNING the loss jumped\n2026-11-29 01:02:05 INFO on\n"
    )
    said = printed(capsys, run, "--once")
    again = printed(capsys, run)  # no terminal: as with --once
    assert _without_ages(again) == _without_ages(said)
  lines = [" ".join(line.split()) for line in said.replace("\n ", " ").splitlines()]
  assert lines[0].startswith(f"{run} training") and lines[1].startswith("step 100 of 400") and "25%" in lines[1]
  assert "loss 1 █▆▅▄▃▃▂▂▁▁" in lines and "speed 1,234 tokens/s" in lines
  assert "time 1 min 40 s: steps 80%, start-up 20%" in lines
  assert any(line.startswith("checkpoint step 80, ") for line in lines)
  assert "hosts 2 processes on nodea, nodeb; process 1 on nodeb holds the others up" in lines
  assert "000080.png" in said and "remarks 2026-11-29 01:02:04 WARNING the loss jumped" in lines and "INFO" not in said


def test_several_runs_have_a_row_each(tmp_path, capsys):
  with a_run(tmp_path / "a"):
    pass
  with a_run(tmp_path / "b"):
    said = printed(capsys, tmp_path, "--once").splitlines()
  assert said[0].split() == ["run", "state", "step", "left", "loss", "tokens/s", "time"]
  assert said[1].split()[:2] == ["a", "not"] and said[-1].split()[:3] == ["b", "training", "100/400"]
  assert "1,234" in said[-1] and "steps 80%" in said[-1]


def test_a_loss_that_is_not_finite_is_told_and_no_older_one(tmp_path, capsys):
  with a_run(tmp_path / "a"):
    with (tmp_path / "a" / "metrics.jsonl").open("a") as f:
      f.write('{"step": 110, "loss": null, "skipped": 3}\n')
    one = printed(capsys, tmp_path / "a", "--once")
    several = printed(capsys, tmp_path, "--once").splitlines()
  assert "loss not finite ▁" in " ".join(one.split()).replace("█", "▁") and "3 updates skipped" in one
  assert "not finite" in several[-1]


def test_what_others_wrote_into_a_run_is_passed_over(tmp_path, capsys):
  with a_run(tmp_path / "a"):
    with (tmp_path / "a" / "metrics.jsonl").open("a") as f:
      f.write('{"step": 101, "loss": NaN, "accuracy": Infinity}\n')
    (tmp_path / "a" / "config.json").write_text('{"run": 5}')
    said = printed(capsys, tmp_path / "a", "--once")
  assert "loss" in said and "accuracy" not in said and "nan" not in said


def test_what_is_no_run_is_refused(tmp_path, capsys):
  for argv in ([tmp_path], [tmp_path / "no"], ["--every=0"], ["--onse"]):
    assert cli.main(["runs", "watch", *map(str, argv)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_states(tmp_path):
  run = tmp_path / "a"
  reader = Reader(run, now=lambda: NOW)
  with a_run(run, part="evaluate") as ledger:
    now = reader.read()
    assert (now.state, now.running, now.finished) == ("drawing samples or scoring", True, False)
    assert now.left == pytest.approx(0.8 * 300)  # and it takes no account of time that it takes for samples
    assert Reader(run, now=lambda: NOW + 30).read().left == pytest.approx(0.8 * 300 - 30)
  now = reader.read()
  assert (now.state, now.running, now.finished, now.left) == ("not running: killed, or lost", False, False, None)
  ledger.close("stopped")
  assert reader.read().state == "stopped"
  with lock.hold(run):
    assert reader.read().state == "starting"  # again, and has written nothing yet
    (run / "goodput.jsonl").unlink()
    assert Reader(run).read().state == "running"  # an earlier version
  again = Ledger()
  again.keep(run)
  again.close("finished")
  assert reader.read().finished and reader.read().state == "finished"


def test_a_file_that_grows_is_read_on_and_one_that_is_replaced_anew(tmp_path):
  run = tmp_path / "a"
  with a_run(run):
    reader = Reader(run)
    assert reader.read().series["loss"][-1] == 1.0 and "bad" not in reader.read().series
    metrics = run / "metrics.jsonl"
    with metrics.open("a") as f:
      f.write('{"step": 110, "loss": 0.5}\n{"step": 120, "lo')
      f.flush()
      assert reader.read().metrics["loss"] == 0.5 and reader.read().step == 110
      f.write('ss": 0.25}\n')
    assert reader.read().metrics["loss"] == 0.25 and len(reader.read().series["loss"]) == 12
    (run / "shorter").write_text('{"step": 10, "loss": 7}\n')
    (run / "shorter").replace(metrics)  # the run was set back
    assert reader.read().series["loss"] == [7.0]


def test_watching_ends_with_the_run_or_ctrl_c(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Output, "isatty", lambda self: True, raising=False)
  run, looks = tmp_path / "a", []

  def sleep(seconds):
    looks.append(seconds)
    if len(looks) == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(runs.time, "sleep", sleep)
  with a_run(run) as ledger:
    printed(capsys, run, "--every=0.5")
    assert looks == [0.5] * 3
  monkeypatch.setattr(runs.time, "sleep", lambda _: ledger.close("finished"))
  assert "finished" in printed(capsys, run)


@pytest.mark.parametrize(
    "values, shown",
    [
        ([], ""), ([3.0], "▁"), ([2.0, 2.0], "▁▁"), ([0.0, 7.0], "▁█"), ([1.0, 10.0, 100.0], "▁▅█"),
        (list(range(8)), "▁▂▃▄▅▆▇█"), ([0.0] * 80 + [1.0] * 80, "▁" * 20 + "█" * 20),
    ],
)  # fmt: skip
def test_sparklines(values, shown):
  assert sparkline(values) == shown


def test_a_run_keeps_what_it_says(tmp_path, monkeypatch):
  log = logging.getLogger("orthus_jax.test")
  log.setLevel(logging.INFO)
  said = Remarks()
  log.info("before there is a workdir")
  said.keep(tmp_path)
  log.warning("two\nlines")
  log.debug("not this")
  said.ended(KeyboardInterrupt())
  said.close()
  log.warning("another run's")
  lines = (tmp_path / remarks.FILE).read_text().splitlines()
  assert [line[20:] for line in lines] == ["INFO before there is a workdir", "WARNING two\\nlines", "ERROR KeyboardInterrupt"]
  assert abs(time.mktime(time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
  assert remarks.last(tmp_path, 2, warnings=True) == lines[1:] and remarks.last(tmp_path, 9) == lines
  assert remarks.last(tmp_path / "no", 9) == []

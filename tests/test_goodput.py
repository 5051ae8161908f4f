"""Where a run's wall time goes, and which process holds the others up."""

import json
import logging
import time

import numpy as np
import pytest

from orthus_jax import errors
from orthus_jax.training import goodput
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.stragglers import judge


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
  """No line is written but those that a test asks for, however slow the machine is."""
  monkeypatch.setattr(goodput, "_EVERY", 1e6)


class Clock:
  """Both clocks of a ledger; a start of the command is `begin` seconds late."""

  def __init__(self):
    self.now = 1000.0

  def start(self, workdir, **more) -> Ledger:
    ledger = Ledger(self.now, clock=lambda: self.now, now=lambda: 1e9 + self.now)
    ledger.keep(workdir, **more)
    return ledger

  def spend(self, ledger: Ledger, **seconds: float) -> None:
    for part, s in seconds.items():
      ledger.enter(part)
      self.now += s


def steps(clock: Clock, ledger: Ledger, first: int, last: int, *, saved=()) -> None:
  """Each step takes 2 s and 1 s of waiting; a checkpoint 0.5 s."""
  for step in range(first, last + 1):
    clock.spend(ledger, data_wait=1.0, step=2.0)
    ledger.did(step)
    if step in saved:
      clock.spend(ledger, checkpoint=0.5)
      ledger.write()


def spent(workdir) -> dict[str, float]:
  """By part, what is nothing left out."""
  found = goodput.totals(goodput.read(workdir))
  assert sum(found.seconds.values()) == pytest.approx(found.wall) and found.seconds.keys() == goodput.PARTS.keys()
  return {p: round(s, 3) for p, s in found.seconds.items() if round(s, 3)}


def test_parts_sum_to_the_wall_time_of_one_start(tmp_path):
  clock = Clock()
  ledger = clock.start(tmp_path)
  clock.spend(ledger, startup=4.0, compile=6.0)
  ledger.enter("step")
  ledger.goes_on_from(0)
  steps(clock, ledger, 1, 4, saved=(2,))
  with ledger.part("evaluate"):
    clock.now += 3.0
    with ledger.part("other"):
      clock.now += 1.0
  clock.now += 2.0
  ledger.close("finished")
  wanted = {"startup": 4.0, "compile": 6.0, "data_wait": 4.0, "step": 10.0, "checkpoint": 0.5, "evaluate": 3.0, "other": 1.0}
  assert spent(tmp_path) == wanted == {p: s for p, s in ledger.totals().seconds.items() if s}
  assert ledger.totals().wall == clock.now - 1000.0
  told = ledger.totals().told()
  assert told.startswith("28.5 s: steps 35%, compiling 21%, ") and "gap" not in told and "down" not in told


def test_a_killed_start_leaves_a_gap_and_what_is_done_again_is_lost(tmp_path):
  clock = Clock()
  first = clock.start(tmp_path)
  clock.spend(first, startup=10.0)
  first.goes_on_from(0)
  steps(clock, first, 1, 7, saved=(3, 6))
  first.write()  # the last sign of life; SIGKILL a second later
  clock.now += 100.0
  with (tmp_path / goodput.FILE).open("ab") as f:
    f.write(b'{"start": 1, "time": 10010')
  second = clock.start(tmp_path)
  clock.spend(second, startup=10.0)
  second.goes_on_from(3)  # the checkpoint of step 6 was half-written
  # Three steps and a checkpoint are kept; the checkpoint of step 6 and steps 4 to 7 are done again.
  before = {"startup": 20.0, "data_wait": 3.0, "step": 6.0, "checkpoint": 0.5, "lost": 12.5, "gap": 100.0}
  assert spent(tmp_path) == before
  assert [r["step"] for r in goodput.read(tmp_path) if r["start"] == 2] == [None, 3]  # none is joined to the torn line
  steps(clock, second, 4, 5)
  assert second.totals().shares()["step"] == pytest.approx(10.0 / 148.0)
  assert {p: s for p, s in second.totals().seconds.items() if s} == before | {"data_wait": 5.0, "step": 10.0}
  assert second.totals().starts == 2


def test_what_several_starts_did_after_one_checkpoint_is_lost_once(tmp_path):
  clock = Clock()
  for _ in range(3):  # each is killed before its first checkpoint
    ledger = clock.start(tmp_path)
    clock.spend(ledger, compile=5.0)
    ledger.goes_on_from(0)
    steps(clock, ledger, 1, 4)
    ledger.write()
  assert spent(tmp_path) == {"compile": 15.0, "lost": 24.0, "data_wait": 4.0, "step": 8.0}
  never = clock.start(tmp_path)  # ends before its first step
  clock.spend(never, startup=2.0)
  never.close("stopped")
  assert spent(tmp_path) == {"compile": 15.0, "lost": 24.0, "data_wait": 4.0, "step": 8.0, "startup": 2.0}
  clock.start(tmp_path).goes_on_from(0)
  assert spent(tmp_path) == {"compile": 15.0, "lost": 36.0, "startup": 2.0}


def test_a_run_that_goes_on_from_an_older_checkpoint_loses_what_two_starts_did(tmp_path):
  clock = Clock()
  for begin, end in ((0, 6), (4, 7), (2, 3)):  # the third finds all checkpoints but that of step 2 damaged
    ledger = clock.start(tmp_path)
    ledger.goes_on_from(begin)
    steps(clock, ledger, begin + 1, end, saved=(2,))
    ledger.write()
  assert spent(tmp_path) == {"data_wait": 3.0, "step": 6.0, "checkpoint": 0.5, "lost": 21.0}


def test_time_between_two_lines_is_shared_among_their_steps(tmp_path):
  clock = Clock()
  ledger = clock.start(tmp_path)
  ledger.goes_on_from(10)
  steps(clock, ledger, 11, 20)
  ledger.write()
  clock.start(tmp_path).goes_on_from(14)  # a checkpoint that another program wrote: no line is of that step
  assert spent(tmp_path) == {"data_wait": 4.0, "step": 8.0, "lost": 18.0}


def test_a_finished_run_that_is_lengthened_was_not_down_meanwhile(tmp_path):
  clock = Clock()
  for end in ("finished", "stopped", ""):
    ledger = clock.start(tmp_path)
    clock.spend(ledger, startup=1.0)
    if end:
      ledger.close(end)
    clock.now += 50.0
  assert spent(tmp_path) == {"startup": 2.0, "gap": 50.0}  # the third start's line is its first


def test_lines_are_few_and_what_is_none_is_passed_over(tmp_path, monkeypatch, caplog):
  clock = Clock()
  ledger = clock.start(tmp_path, hosts=["a", "b"])
  ledger.goes_on_from(0)
  steps(clock, ledger, 1, 1000)
  file = tmp_path / goodput.FILE
  assert file.read_bytes().count(b"\n") == 2  # steps write nothing: that is left to a thread
  assert json.loads(file.read_text().splitlines()[0])["hosts"] == ["a", "b"]
  wrong = (b'{"start": 1, "time": 1, "step": "a", "seconds": {}}', b'{"start": 1, "time": 1, "seco')
  for bad in (b"", b"3", b"[]", b"{}", *wrong):
    assert goodput.record(bad) is None
    with file.open("ab") as f:
      f.write(bad + b"\n")
  assert len(goodput.read(tmp_path)) == 2
  assert goodput.totals([]) == goodput.Totals(0.0, dict.fromkeys(goodput.PARTS, 0.0), 0) and goodput.read(tmp_path / "no") == []

  class Full:
    def write(self, _):
      raise OSError(28, "No space left on device")

    def close(self):
      pass

  ledger._file.close()
  ledger._file = Full()
  logging.getLogger("orthus_jax").propagate = True
  for _ in range(3):
    ledger.write()
  assert caplog.text.count("No space left on device") == 1  # and the run goes on


def test_a_thread_writes_while_a_step_is_long(tmp_path, monkeypatch):
  monkeypatch.setattr(goodput, "_EVERY", 0.01)
  ledger = Ledger()
  ledger.keep(tmp_path)
  with ledger.part("evaluate"):
    end = time.monotonic() + 20
    while time.monotonic() < end:
      if any(r["seconds"]["evaluate"] > 0.02 and r["part"] == "evaluate" for r in goodput.read(tmp_path)):
        break
    else:
      raise AssertionError("no line")
  ledger.close("stopped")
  assert goodput.read(tmp_path)[-1]["end"] == "stopped"


# --- stragglers -----------------------------------------------------------------------------------------------------


def test_the_third_start_in_a_row_that_gets_nowhere_asks_for_no_other(tmp_path):
  clock = Clock()

  def start(begin: int | None, end: str | None) -> tuple[int, str]:
    ledger = clock.start(tmp_path)
    clock.spend(ledger, startup=4.0)
    if begin is not None:
      ledger.goes_on_from(begin)
      steps(clock, ledger, begin + 1, begin + 3)
    told = ledger.when_lost()
    if end:
      ledger.close(end)
    return told

  lost = errors.LOST, ""
  assert start(0, "failed") == lost and start(0, None) == lost  # the second was killed
  status, why = start(0, "failed")
  assert status == 1 and why.startswith("3 starts in a row")
  assert start(None, "failed")[0] == 1  # it didn't get as far as its first step
  assert start(8, "failed") == lost  # from a newer checkpoint
  start(8, "stopped")  # preempted
  assert start(8, "failed") == lost and start(None, "failed") == lost and start(8, "failed")[0] == 1
  assert start(12, "finished") == lost


def test_a_start_that_saved_was_not_in_vain_whatever_came_of_those_after_it(tmp_path):
  clock = Clock()
  for newest, end in ((-1, "failed"), (100, "failed"), (100, "failed")):
    ledger = clock.start(tmp_path, newest=newest)
    if newest < 0:
      ledger.goes_on_from(0)
      steps(clock, ledger, 1, 3)  # and saved more by the hundredth
    assert ledger.when_lost()[0] == errors.LOST
    ledger.close(end)
  assert clock.start(tmp_path, newest=100).when_lost()[0] == 1  # the third that found nothing newer


def times(data, own, *, records: int = 3) -> np.ndarray:
  """[log records, processes, 2]."""
  return np.repeat(np.stack([data, own], axis=-1)[None], records, axis=0).astype(np.float32)


@pytest.mark.parametrize(
    "data, own, named",
    [
        ([0.1, 0.1, 0.9, 0.1], [0.2] * 4, (2, 0, 0.9, 0.1)),  # waits for its data
        ([0.1] * 4, [0.2, 0.2, 0.2, 0.5], (3, 1, 0.5, 0.2)),  # has more to do
        ([0.1] * 4, [0.2, 0.22, 0.2, 0.28], None),  # not 1.5 times as much
        ([0.0, 0.0, 0.04], [0.1] * 3, None),  # many times as much, and a twenty-fifth of a step
        ([0.0, 0.3], [0.1, 0.1], (1, 0, 0.3, 0.0)),  # of two, the one beyond the other
        ([0.0, 0.3, 0.3, 0.3], [0.1] * 4, None),  # most of them
        ([0.3, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], (3, 1, 0.7, 0.1)),  # the worse of two comes first
    ],
)  # fmt: skip
def test_a_process_that_is_beyond_the_others_is_named(data, own, named):
  found = judge(times(data, own), step=1.0)
  assert (found[0] if found else None) == (named and pytest.approx(named))


def test_one_slow_record_names_nobody():
  window = times([0.1] * 4, [0.2] * 4, records=10)
  window[4, 1, 0] = 0.5
  assert judge(window, step=1.0) == []

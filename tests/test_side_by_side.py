"""A batch in parts that threads move ahead: which request goes where, what is waited for, and what comes of errors."""

import threading
import types

import jax.numpy as jnp
import pytest

from orthus_jax.inference import capacity, side_by_side
from orthus_jax.inference.scheduler import Progress
from orthus_jax.parallel import compiler


class Part:
  """A scheduler whose requests end at once, when it is let go on."""

  made: list["Part"] = []
  compiled: list = []

  def __init__(self, network, capacity, *, programs):
    self.size, self.programs, self.go, self.rows = capacity.size, programs, threading.Event(), []
    self.error, self.steps = None, 0
    Part.made.append(self)

  @property
  def busy(self):
    return len(self.rows)

  guides_in_use = busy

  def guides_of(self):
    return dict.fromkeys(self.rows, 1)

  def join(self, ticket, request):
    if len(self.rows) == self.size.rows:
      return False
    self.rows.append(ticket)
    return True

  def step(self, *, others):
    assert self.go.wait(10)
    self.steps += 1
    if self.error:
      raise self.error
    done, self.rows = self.rows, []
    return [Progress(ticket, None, None, True) for ticket in done]

  def compile(self, told=None):
    Part.compiled.append((self, told))

  def leave(self, tickets):
    self.rows, self.left = [r for r in self.rows if r not in tickets], set(tickets)


@pytest.fixture
def batch(monkeypatch):
  monkeypatch.setattr(side_by_side, "Scheduler", Part)
  Part.made = []
  holds = capacity.make(("stored", "compute", "loop"), rows=4, guides=3, slots=9, positions=4, solvers=())
  yield side_by_side.SideBySide(None, holds, 2)
  for part in Part.made:
    part.go.set()


def tickets(progress):
  return sorted(p.ticket for p in progress)


def test_requests_are_shared_out_and_who_is_first_is_not_waited_with(batch):
  a, b = Part.made
  assert a.programs is b.programs and a.size.rows == 2 and a.size.guides == 2
  assert [batch.join(n, None) for n in range(5)] == [True] * 4 + [False]
  assert (a.rows, b.rows) == ([0, 2], [1, 3])
  b.go.set()
  assert tickets(batch.step()) == [1, 3] and batch.busy == batch.guides_in_use == 2
  assert batch.join(4, None) and b.rows == [4]  # and not in the one that is moving
  assert tickets(batch.step(others=True)) == [4]
  a.go.set()
  while a.rows:
    threading.Event().wait(0.01)
  assert batch.busy == 2  # they have ended, and nobody has been told yet
  assert tickets(batch.step()) == [0, 2] and not batch.busy and a.steps == 1


def test_what_is_given_up_is_told_no_more_of(batch):
  a, b = Part.made
  for n in range(4):
    batch.join(n, None)
  b.go.set()
  batch.step()
  batch.join(5, None)
  batch.leave([2, 5])  # of a moving part, which isn't waited for, and of one that stands still
  assert batch.busy == batch.guides_in_use == 1
  a.go.set()
  assert tickets(batch.step()) == [0] and not batch.busy and a.left == {2}


def test_what_compiles_is_told_of(batch, monkeypatch):
  monkeypatch.setattr(Part, "compiled", [])
  batch.compile(print)
  assert Part.compiled == [(Part.made[0], print), (Part.made[1], None)]  # the first one makes the programs of all


def test_an_error_of_a_part_is_raised(batch):
  a, b = Part.made
  batch.join(0, None)
  batch.join(1, None)
  b.error = ValueError("broken")
  b.go.set()
  with pytest.raises(ValueError, match="broken"):
    batch.step()
  a.go.set()


def test_any_request_that_the_capacity_takes_fits_into_a_part(monkeypatch):
  monkeypatch.setattr(side_by_side, "Scheduler", Part)
  Part.made = []
  holds = capacity.make(("stored", "compute", "loop"), rows=16, guides=2, slots=9, positions=4, solvers=())
  side_by_side.SideBySide(None, holds, 4)
  assert {p.size.guides for p in Part.made} == {2}


def test_parts_are_for_small_models_on_a_cpu(monkeypatch):
  monkeypatch.setattr(side_by_side.os, "sched_getaffinity", lambda _: range(4), raising=False)
  network = types.SimpleNamespace(params={"a": jnp.ones(3)}, on_one_cpu=True)
  assert [side_by_side.parts(network, rows) for rows in (1, 7, 8, 9, 18, 64)] == [1, 1, 2, 1, 3, 4]
  monkeypatch.setattr(side_by_side, "_LARGEST", 11)
  assert side_by_side.parts(network, 64) == 1
  network = types.SimpleNamespace(params={}, on_one_cpu=False)
  assert side_by_side.parts(network, 64) == 1


def test_a_program_is_first_run_by_one_thread_alone():
  programs, told = compiler.Programs(), []
  begin = threading.Barrier(3)

  def run():
    begin.wait(10)
    with programs.run("advance", 64):
      told.append("begins")
      threading.Event().wait(0.02)
      told.append("ends")

  threads = [threading.Thread(target=run) for _ in range(3)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert told[:2] == ["begins", "ends"] and len(told) == 6
  with programs.run("read", 64), programs.run("advance", 64):  # of what has been compiled, nobody is waited for
    pass


def test_few_rows_are_left_to_the_library_that_is_faster_for_them(monkeypatch):
  monkeypatch.setattr(compiler, "_cpu", lambda: {"no_such_option": ""})
  double = compiler.jit(lambda x: 2 * x)
  assert double.few_rows(3.0) == 6
  with pytest.raises(Exception, match="no_such_option"):
    double(3.0)

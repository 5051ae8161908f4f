"""When a step is compiled beside the reading, and what becomes of an error meanwhile; test_checkpoints has its numbers."""

import dataclasses

import jax
import pytest
import tiny

from orthus_jax import cli, training_run
from orthus_jax.errors import BadRequest
from orthus_jax.training import step_ahead, watchdog


@pytest.fixture
def started(monkeypatch):
  monkeypatch.setattr(step_ahead, "StepAhead", lambda config: "started")


def test_a_step_is_compiled_ahead_where_reading_takes_a_while(started, tmp_path, monkeypatch):
  config = tiny.config()
  assert step_ahead.start(config, 5000, tmp_path) == "started"
  assert step_ahead.start(config, 4000, tmp_path) is None
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert step_ahead.start(config, 5000, tmp_path) is None  # autotuning is to be alone
  monkeypatch.undo()
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert step_ahead.start(config, 5000, tmp_path) is None


def test_none_is_compiled_for_a_run_that_is_done(started, tmp_path, monkeypatch):
  monkeypatch.setattr(step_ahead.checkpoint, "steps", lambda workdir: [2, 6])
  config = tiny.config(run__steps=6)
  assert step_ahead.start(config, 5000, tmp_path) is None
  longer = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=8))
  assert step_ahead.start(longer, 5000, tmp_path) == "started"


def test_a_step_is_taken_for_its_own_shapes_alone(monkeypatch):
  monkeypatch.setattr(step_ahead.StepAhead, "_compile", lambda self: setattr(self, "_made", "compiled"))
  ahead, other = step_ahead.StepAhead(tiny.config()), step_ahead.StepAhead(tiny.config(data__sequence_length=48))
  assert ahead.take(ahead._batch) == other.take(other._batch) == "compiled"
  assert ahead.take(other._batch) is None


@pytest.mark.parametrize("under_way", [False, True])
def test_an_error_is_said_at_once_whatever_is_compiled(under_way, tmp_path, monkeypatch, capsys):
  def fails(*args, **kwargs):
    raise BadRequest("no such kind")

  left = []
  monkeypatch.setattr(training_run, "run", fails)
  monkeypatch.setattr(step_ahead, "under_way", lambda: under_way)
  monkeypatch.setattr(watchdog, "leave", lambda status, stacks: left.append((status, stacks)))
  assert cli.main(["train", "--config=configs/shapes.py", f"--workdir={tmp_path}/run"]) == 2
  assert left == [(2, False)] * under_way and capsys.readouterr().err.startswith("orthus: no such kind")

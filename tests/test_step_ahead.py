"""When a step is compiled beside the reading, and what becomes of an error meanwhile; test_checkpoints has its numbers."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
import tiny

from orthus_jax import cli, training_run
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest
from orthus_jax.training import step_ahead, tasks, watchdog


@pytest.fixture
def started(monkeypatch):
  monkeypatch.setattr(step_ahead, "StepAhead", lambda config: "started")


def test_a_step_is_compiled_ahead_where_reading_takes_a_while(started, tmp_path):
  config = tiny.config()
  assert step_ahead.start(config, 5000, tmp_path) == "started"
  assert step_ahead.start(config, 4000, tmp_path) is None
  for elsewhere in (dict(data__source="prepared"), dict(run__resume_from="runs/a")):
    assert step_ahead.start(tiny.config(**elsewhere), 5000, tmp_path) is None
  for what, value in (("default_backend", "gpu"), ("process_count", 2)):  # a GPU's autotuning is to be alone
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax, what, lambda value=value: value)
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
  assert other.take(ahead._batch) is None and ahead.take(ahead._batch) == "compiled"
  assert ahead.take(ahead._batch) is None  # it was let go


@pytest.mark.parametrize("changes", [{}, {"data__cache_features": True, "data__turns": "separate"}], ids=str)
def test_the_shapes_are_those_of_the_batches(changes):
  config, source = tiny.config(**changes), tiny.TinySource()
  pipeline = Pipeline(source, tiny.tokenizer(), config)
  if config.data.cache_features:
    vision = config.model.vision_tokenizer
    pipeline.table.features_IPC = np.zeros((len(pipeline.table.pixels), vision.patches, vision.latent_dim), np.float32)
  assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pipeline.batch(0)) == tasks.batch_shapes(config)


def test_what_fails_ahead_is_left_to_who_compiles_again(monkeypatch, capfd):
  going_on = threading.Event()

  def fails(*args):
    going_on.wait(60)
    raise BadRequest("no such optimizer")

  monkeypatch.setattr(step_ahead, "make_optimizer", fails)
  ahead = step_ahead.StepAhead(tiny.config())
  assert step_ahead.under_way()
  going_on.set()
  assert ahead.take(ahead._batch) is None and not step_ahead.under_way() and capfd.readouterr().err == ""


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

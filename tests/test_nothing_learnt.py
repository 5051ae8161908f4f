"""Data in which nothing is to be learnt is refused; documents and batches without are counted, prepared data's too."""

import logging

import numpy as np
import pytest
import tiny

from orthus_jax import lock, training_run
from orthus_jax.data.documents import Document, Image, Text, document
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.prepared import writer as prepared
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.errors import BadRequest
from orthus_jax.training import tasks

TK = tiny.tokenizer()
PIXELS = np.zeros((8, 8, 3), np.uint8)
NO_TEXT = {"model__transformer__text_loss_weight": 0.0}


def given(n: int) -> Document:
  return Document((Text(f"box {n}"), Image(PIXELS + n)), id=f"given-{n}", kind="given")


def answers(n: int) -> Document:
  return document(PIXELS + n, "what is this", "a box", learn=[2], id=f"answer-{n}", kind="ask")


def open_in_memory(documents, folder, **changes):
  return Pipeline(documents, TK, tiny.config(**changes))


def open_prepared(documents, folder, **changes):
  prepared.prepare(documents, TK, tiny.config(), folder / "p", images="pixels")
  return PreparedPipeline(TK, tiny.config(data__source="prepared", data__path=str(folder / "p"), **changes))


@pytest.mark.parametrize("open_it", [open_in_memory, open_prepared])
class TestBoth:
  def test_documents_that_are_all_given_are_refused(self, open_it, tmp_path):
    with pytest.raises(BadRequest, match='none of the 9 documents has anything to learn: mark .* "learn": true'):
      open_it([given(i) for i in range(9)], tmp_path)

  def test_what_has_a_loss_of_no_weight_is_not_learnt(self, open_it, tmp_path):
    with pytest.raises(BadRequest, match="none of the 4 documents has anything to learn.*text_loss_weight"):
      open_it([answers(i) for i in range(4)], tmp_path, **NO_TEXT)

  def test_kinds_of_weight_0_do_not_count(self, open_it, tmp_path):
    with pytest.raises(BadRequest, match="none of the 3 documents has anything to learn"):
      open_it([*map(given, range(3)), *map(answers, range(3))], tmp_path, data__kinds=[["given", 1.0], ["ask", 0.0]])

  def test_some_are_counted_and_batches_without_too(self, open_it, tmp_path, caplog):
    pipeline = open_it([answers(0), *map(given, range(40))], tmp_path, run__batch_size=1)
    assert len(pipeline.idle) == 40
    idle = [step for step in range(20) if not pipeline.batch(step).text_weight_BT.any()]
    assert len(idle) >= 5 and pipeline._idle_steps.steps == set(idle)
    told = [r.getMessage() for r in caplog.records if "in which nothing is to be learnt" in r.getMessage()]
    assert len(told) == len(idle).bit_length() and told[0].endswith(f": 1, the latest of step {idle[0]}")
    pipeline = open_it([answers(0), *map(given, range(3))], tmp_path / "b", run__batch_size=8)
    pipeline.batch(0, np.arange(1))  # one row of another process has it, perhaps
    assert not pipeline._idle_steps.steps

  def test_what_is_learnt_is_not_told_of(self, open_it, tmp_path, caplog):
    pipeline = open_it(tiny.TinySource(40), tmp_path)
    pipeline.batch(0)
    assert not pipeline.idle and "learn" not in caplog.text


def test_data_prepared_by_an_earlier_version_is_read(tmp_path):
  prepared.prepare([given(0), answers(1)], TK, tiny.config(), tmp_path / "p", images="pixels")
  with np.load(tmp_path / "p" / "index.npz") as index:
    old = {k: index[k] for k in ("sizes_DV3", "kind_D")}
  np.savez(tmp_path / "p" / "index.npz", **old)
  assert len(PreparedPipeline(TK, tiny.config(data__source="prepared", data__path=str(tmp_path / "p")))) == 2


def test_a_run_and_prepare_count_what_they_leave_out(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  source = [None, answers(0), given(1), None]
  training_run._orthus_task(tiny.config(), source, TK)
  prepared.prepare(source, TK, tiny.config(), tmp_path / "p", images="pixels")
  assert "2 of 4 documents are bad, and are left out" in caplog.text and "bad records left out: 2" in caplog.text
  assert "1 of 2 documents have nothing to learn, and are shown for nothing: given-1" in caplog.text
  assert caplog.text.count("1 of 2 documents have nothing to learn") == 2


def test_pictures_are_what_a_vision_tokenizer_learns_from():
  with pytest.raises(BadRequest, match="none of the 2 documents holds a picture"):
    tasks.TokenizerTask(tiny.config(), [None, document("a box", learn=[0])])


@pytest.mark.parametrize("there", [False, True])
def test_a_prepare_that_fails_leaves_nothing(tmp_path, there):
  if there:
    (tmp_path / "p").mkdir()

  class Breaks:
    def __len__(self):
      return 9

    def __getitem__(self, i):
      if i == 5:
        raise BadRequest("too many are bad")
      return answers(i)

  with lock.hold(tmp_path / "p"):  # as the command does
    with pytest.raises(BadRequest, match="too many are bad"):
      prepared.prepare(Breaks(), TK, tiny.config(), tmp_path / "p", images="pixels")
    assert (tmp_path / "p" / lock.NAME).exists()
  assert [*tmp_path.rglob("*")] == ([tmp_path / "p"] if there else [])

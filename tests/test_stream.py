"""A list of requests in the running batch: it is read as there is room, and what comes late may be larger than the rest."""

import dataclasses

import numpy as np
import pytest
import tiny

from orthus_jax.data.documents import document
from orthus_jax.inference import model as model_lib, scheduler, stream
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Drawn, Failed, Finished


@pytest.fixture(scope="module")
def model():
  return tiny.lively_model()


def asking(model, text="what is this", respond="text", seed=0, **how) -> Request:
  return Request(document(text), respond=respond, seed=seed, sampling=dataclasses.replace(model.config.sampling, **how))


def test_requests_are_read_as_there_is_room_and_no_row_stays_empty(model, monkeypatch):
  monkeypatch.setattr(stream, "_AHEAD", 4)
  taken, ended, busy = 0, 0, []

  def requests():
    nonlocal taken
    for taken in range(1, 16):
      wrong = taken == 6  # which takes no row
      yield asking(model, "" if wrong else "red", seed=taken, max_new_tokens=3 + 5 * taken % 7)

  step = scheduler.Scheduler.step

  def noted(self, **options):
    busy.append((self.busy, taken - ended))
    return step(self, **options)

  monkeypatch.setattr(scheduler.Scheduler, "step", noted)
  reasons = {}
  for event in model.stream(requests(), batch_size=2):
    if isinstance(event, Finished | Failed):
      ended += 1
      reasons[event.index] = getattr(event, "reason", "")
  assert sorted(reasons) == list(range(15)) and [i for i, reason in reasons.items() if reason] == [5]
  assert "holds an empty text" in reasons[5]
  assert max(here for _, here in busy) <= 2 + 4  # in rows, and laid out ahead
  assert {rows for rows, here in busy if here >= 2} == {2}  # until the last one runs alone


@pytest.mark.slow
def test_what_comes_late_may_be_larger(model, monkeypatch):
  monkeypatch.setattr(stream, "_AHEAD", 2)
  made = []
  init = scheduler.Scheduler.__init__

  def noted(self, network, capacity):
    made.append(capacity)
    init(self, network, capacity)

  monkeypatch.setattr(scheduler.Scheduler, "__init__", noted)
  small = [asking(model, seed=n, max_new_tokens=4) for n in range(4)]
  large = [
      asking(model, "draw a red box", "image", seed=8, guidance=3.0, solver="dpm", steps=3),
      asking(model, "two", seed=9, max_new_tokens=70, temperature=1.0, repetition_penalty=2.0),
  ]
  asked = [*small, *large, *(asking(model, seed=n, max_new_tokens=4) for n in range(10, 14)), *large]
  events = list(model.stream(iter(asked), batch_size=2))
  assert len(made) == 2 and made[1].size.slots > made[0].size.slots == 64  # once grown, it stays so
  assert made[1].solvers[: len(made[0].solvers)] == made[0].solvers and not made[0].sampled and made[1].repeats
  found = {e.index: e.document for e in events if isinstance(e, Finished)}
  assert found[4].images[0].pixels is next(e.pixels for e in events if isinstance(e, Drawn) and e.index == 4)
  for i in (0, 4, 5, 8, 10, 11):
    alone = model.generate([asked[i].document], respond=asked[i].respond, sampling=asked[i].sampling, seeds=[asked[i].seed])[0]
    assert [s.text for s in found[i].texts] == [s.text for s in alone.texts], i
    for a, b in zip(found[i].images, alone.images, strict=True):
      assert np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 64, 130])
def test_pictures_are_worked_on_in_blocks_of_a_few_sizes(n):
  sizes = []

  def twice(x):
    sizes.append(len(x))
    return 2 * x

  x = np.arange(3 * n).reshape(n, 3)
  np.testing.assert_array_equal(model_lib._in_blocks(twice, x), 2 * x)
  assert set(sizes) <= set(model_lib._BLOCKS) and 3 * sum(sizes) <= 4 * n

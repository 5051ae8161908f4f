"""The open batch: requests join and leave while others run, and get what they would get alone."""

import dataclasses
import queue
import threading
import time

import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data.documents import document
from orthus_jax.errors import BadRequest
from orthus_jax.inference import scheduler
from orthus_jax.inference.live import Engine, Full, Limits
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Drawn, Failed, Finished, Preview, TextPiece

pytestmark = pytest.mark.slow
LIMITS = Limits(rows=3, guides=3, slots=256, positions=4, queue=4)


@pytest.fixture(scope="module")
def model():
  return tiny.lively_model()


@pytest.fixture
def engine(model):
  engine = Engine(model, LIMITS)
  engine.start()
  yield engine
  engine.close()


def end(ticket, seconds=120.0):
  """The last thing that is told."""
  return list(ticket.events(seconds))[-1]


def wait_for(what, seconds=60.0):
  by = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < by, "it didn't come to that"
    time.sleep(0.01)


def long(model):
  """A request that takes far longer than a test looks at it."""
  return Request(document("two"), respond="text", sampling=dataclasses.replace(model.config.sampling, max_new_tokens=200))


def requests(model):
  how = dataclasses.replace(model.config.sampling, guidance=2.0, max_new_tokens=30)
  pixels = tiny.TinySource()[0].images[0].pixels
  return [
      Request(document("draw a red box"), respond="image", seed=1, sampling=how),
      Request(document(pixels, "what is it?"), respond="text", seed=2, sampling=how),
      Request(document("two"), seed=3, sampling=how),
      Request(document(pixels, "make it blue"), respond="image", seed=4, sampling=how),
      Request(document("red"), respond="image", seed=5, sampling=how),
  ]  # fmt: skip


def test_each_gets_what_it_gets_offline_whenever_it_joins(model, engine):
  asked = requests(model)
  offline = {e.index: e.document for e in model.stream(asked, batch_size=3) if isinstance(e, Finished)}
  tickets = []
  for request in asked:
    while True:
      try:
        tickets.append(engine.submit(request))
        break
      except Full:
        time.sleep(0.01)
    time.sleep(0.05)
  for n, ticket in enumerate(tickets):
    events = list(ticket.events(120))
    assert isinstance(events[-1], Finished) and events[-1].index == ticket.number
    for a, b in zip(events[-1].document.segments, offline[n].segments, strict=True):
      if hasattr(a, "text"):
        assert a == b
      else:
        assert np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max() <= 1
    told = "".join(e.text for e in events if isinstance(e, TextPiece))
    assert told.strip() == " ".join(s.text for s in events[-1].document.response().texts).strip()
  assert (engine.load.waiting, engine.load.rows, engine.load.guides) == (0, 0, 0)


def test_text_behind_a_picture_is_told_behind_it(model):
  engine = Engine(model, LIMITS)
  engine.model = tiny.eager_to_draw(model, document("two"))
  engine._start_anew()
  engine.start()
  how = dataclasses.replace(model.config.sampling, guidance=1.0, max_new_tokens=60)
  events = list(engine.submit(Request(document("two"), sampling=how)).events(120))
  told = [
      e.text.strip() if isinstance(e, TextPiece) else e.pixels for e in events if isinstance(e, TextPiece | Drawn)
  ]  # fmt: skip
  segments = events[-1].document.response().segments
  assert sum(hasattr(s, "pixels") for s in segments) >= 1 and any(hasattr(s, "text") for s in segments)
  joined: list = []  # pieces of one text are one
  for t in told:
    if isinstance(t, str) and joined and isinstance(joined[-1], str):
      joined[-1] += t
    elif not isinstance(t, str) or t:
      joined.append(t)
  for a, b in zip(joined, segments, strict=True):
    if isinstance(a, str):
      assert a.replace(" ", "") == b.text.replace(" ", "")
    else:
      assert np.array_equal(a, b.pixels)
  engine.close()


def test_no_request_waits_for_a_program_that_was_compiled_ahead(model, caplog, request):
  engine = Engine(model, Limits(rows=4, guides=4, slots=192, positions=7))  # of no other test, so that nothing is there
  done = []
  engine.compile(lambda n, total: done.append((n, total)))
  assert done[-1][0] == done[-1][1] == len(done)
  engine.start()
  pixels = tiny.TinySource()[0].images[0].pixels
  jax.config.update("jax_log_compiles", True)  # of all threads
  request.addfinalizer(lambda: jax.config.update("jax_log_compiles", False))
  with caplog.at_level("WARNING"):
    for n in (1, 4):  # alone, and several at once
      tickets = [
          engine.submit(Request(d, respond=r, seed=s))
          for s in range(n)
          for d, r in ((document("red"), "text"), (document("a box"), "image"), (document(pixels, "blue"), "image"))
      ][:4]  # fmt: skip
      assert all(isinstance(end(t), Finished) for t in tickets)
  compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
  assert not compiled, compiled
  engine.close()


def test_a_request_begins_to_speak_within_two_calls_of_joining(model, engine):
  first = engine.submit(long(model))
  wait_for(lambda: engine.load.rows == 1 and engine.load.calls > 2)
  before = engine.load.calls
  second = engine.submit(long(model))
  next(second.events(60))
  assert second.calls <= 2 and engine.load.calls - before <= 4  # the one under way, its own, and one while this looks
  for ticket in (first, second):
    ticket.cancel()


def test_what_is_cancelled_frees_its_row_and_guides_at_the_next_call(model, engine):
  drawing = engine.submit(Request(document("draw a red box"), respond="image", sampling=dataclasses.replace(
      model.config.sampling, guidance=2.0)))  # fmt: skip
  others = [engine.submit(long(model)) for _ in range(3)]
  wait_for(lambda: engine.load.rows == 3 and engine.load.waiting == 1)
  for ticket in (drawing, others[0], others[2]):  # the last one still waits
    ticket.cancel()
  assert [end(t).reason for t in (drawing, others[0], others[2])] == ["it was cancelled"] * 3
  wait_for(lambda: engine.load.rows == 1)
  assert engine.load.guides == 0
  others[1].cancel()
  assert isinstance(end(others[1]), Failed)
  drawing.cancel()  # of what has ended, nothing comes
  assert not np.asarray(engine._batch._scheduler._state.active_B).any()  # nor does the device work on for nobody


def test_a_lane_of_what_was_given_up_guides_no_one(model, engine):
  """Its row's next request may begin in the very call at which it went."""
  guided = requests(model)[4]
  unguided = dataclasses.replace(guided, sampling=dataclasses.replace(guided.sampling, guidance=1.0))
  first = engine.submit(guided)
  wait_for(lambda: engine.load.guides == 1)
  with engine._changed:
    first.cancel()
    second = engine.submit(unguided)
  drawn = end(second).document.images[-1].pixels
  alone = model.generate([unguided.document], respond="image", sampling=unguided.sampling, seeds=[unguided.seed])[0]
  assert np.abs(drawn.astype(int) - alone.images[-1].pixels.astype(int)).max() <= 1


def test_a_deadline_ends_a_request_wherever_it_is(model, engine):
  slow = [engine.submit(long(model), seconds=0.01) for _ in range(4)]
  assert {end(t).reason for t in slow} == {"it took too long"}
  wait_for(lambda: engine.load.rows == 0)


def test_no_more_wait_than_may(model, engine):
  tickets = [engine.submit(long(model)) for _ in range(3)]
  wait_for(lambda: engine.load.rows == 3)
  tickets += [engine.submit(long(model)) for _ in range(4)]
  with pytest.raises(Full):
    engine.submit(long(model))
  for ticket in tickets:
    ticket.cancel()


def test_those_whose_rows_are_free_are_none_that_wait(model, engine):
  wait_for(lambda: engine.load.rows == 0)
  for ticket in [engine.submit(long(model)) for _ in range(LIMITS.rows + LIMITS.queue)]:  # none is refused
    ticket.cancel()


def test_what_cannot_be_served_is_refused_at_once(model, engine):
  how = model.config.sampling
  for changes, message in (
      (dict(steps=how.steps + 1), "solver and steps must be one of those that this engine was started with: ddim with"),
      (dict(weights="int8"), "weights, cache and solver_loop are"),
  ):
    with pytest.raises(BadRequest, match=message):
      engine.submit(Request(document("red"), sampling=dataclasses.replace(how, **changes)))
  small = Engine(model, Limits(rows=1, guides=0, slots=64))
  alone = dataclasses.replace(how, max_new_tokens=100, guidance=1.0)
  assert small._prepared(Request(document("red"), respond="text", sampling=alone)).slots == 64  # as long as it can be
  with pytest.raises(BadRequest, match="and there are 64: ask for less"):
    small.submit(Request(document("red"), max_images=4, sampling=alone))
  with pytest.raises(BadRequest, match="and there are 64: ask for less"):
    small.submit(Request(document("red " * 40), sampling=alone))
  with pytest.raises(BadRequest, match="guidance needs 1 lanes of 0: set it to 1"):
    small.submit(Request(document("red"), respond="image", sampling=dataclasses.replace(how, guidance=3.0)))


def test_a_fault_ends_what_runs_and_the_engine_goes_on(model, engine, monkeypatch):
  waits = engine.submit(long(model))
  wait_for(lambda: engine.load.calls > 1)
  step = scheduler.Scheduler.step

  def fails(*args, **options):
    monkeypatch.setattr(scheduler.Scheduler, "step", step)
    raise MemoryError("out of memory")

  monkeypatch.setattr(scheduler.Scheduler, "step", fails)
  assert end(waits).reason == "the engine failed: MemoryError: out of memory"
  assert isinstance(end(engine.submit(requests(model)[4])), Finished)


def test_text_ends_where_the_room_of_pictures_begins(model, engine):
  brief = dataclasses.replace(model.config.sampling, guidance=1.0, max_new_tokens=5)
  ticket = engine.submit(Request(document("two"), sampling=brief, max_images=2))
  events = list(ticket.events(60))
  drawn = sum(isinstance(e, Drawn) for e in events)
  P = model.config.model.vision_tokenizer.patches
  assert isinstance(events[-1], Finished) and ticket.made - drawn * (P + 2) == ticket.said == 6  # the last is its end
  assert ticket.cut and ticket.made < ticket.most


def test_who_cannot_join_ends_and_is_met_no_more(model, engine, monkeypatch):
  joins, met = engine._joins, []

  def fails(ticket, prepared):
    if not met:
      met.append(ticket)
      raise ValueError("odd")
    return joins(ticket, prepared)

  monkeypatch.setattr(engine, "_joins", fails)
  assert end(engine.submit(requests(model)[4])).reason == "the engine failed: ValueError: odd"
  assert isinstance(end(engine.submit(requests(model)[4])), Finished)


def test_an_engine_that_cannot_begin_anew_says_so_to_all(model, monkeypatch):
  engine, kept = Engine(model, LIMITS), []
  engine.start()
  tickets = [engine.submit(long(model)) for _ in range(3)]
  wait_for(lambda: engine.load.rows == 3)

  def fails(*args, **options):
    tickets.append(engine.submit(long(model)))  # which waits
    raise MemoryError("out of memory")

  def full():
    kept.append(hasattr(engine, "_batch"))
    raise MemoryError("still")

  monkeypatch.setattr(engine, "_start_anew", full)
  monkeypatch.setattr(scheduler.Scheduler, "step", fails)
  lost = "the engine can't begin anew: MemoryError: still"
  wait_for(lambda: engine.failed == lost)
  assert [end(t).reason for t in tickets] == ["the engine failed: MemoryError: out of memory"] * 3 + [lost]
  assert kept == [False]  # the old one's arrays are gone by then
  with pytest.raises(RuntimeError, match=lost):
    engine.submit(long(model))
  engine.close()


def test_closing_lets_what_runs_finish_and_takes_nothing_new(model):
  engine = Engine(model, LIMITS)
  engine.start()
  short, endless = engine.submit(requests(model)[4]), engine.submit(long(model))
  closer = threading.Thread(target=engine.close, kwargs={"seconds": 300.0})
  closer.start()
  wait_for(lambda: not engine._open)
  with pytest.raises(RuntimeError, match="takes no requests"):
    engine.submit(long(model))
  endless.cancel()
  assert isinstance(end(short), Finished)
  closer.join(60)
  assert not closer.is_alive()
  engine = Engine(model, LIMITS)
  engine.start()
  ticket = engine.submit(long(model))
  engine.close()
  assert end(ticket).reason == "the server is stopping"


def test_closing_waits_no_longer_for_a_call_that_hangs(model, monkeypatch):
  engine, on = Engine(model, LIMITS), threading.Event()
  monkeypatch.setattr(engine._batch, "turn", lambda **_: on.wait(60) and ({}, []))
  engine.start()
  ticket = engine.submit(long(model))
  wait_for(lambda: engine._running)
  waits = engine.submit(long(model))
  assert not engine.close(seconds=0.1, hanging=0.1)
  assert [end(t).reason for t in (ticket, waits)] == ["the server is stopping, and a call hangs"] * 2
  on.set()
  assert engine.close()


def test_previews_come_on_the_way(model):
  engine = Engine(model, dataclasses.replace(LIMITS, preview_rows=1))
  engine.start()
  events = list(engine.submit(requests(model)[4]).events(120))
  assert sum(isinstance(e, Preview) for e in events) >= 2 and isinstance(events[-1], Finished)
  with pytest.raises(queue.Empty):
    next(engine.submit(long(model)).events(0.0))
  engine.close()

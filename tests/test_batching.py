"""Many requests in one running batch: each gets what it would get alone, and what saves time changes nothing."""

import dataclasses

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax.data.documents import Text, document
from orthus_jax.errors import BadRequest
from orthus_jax.inference import capacity, drawing, engine, engine_state, prompt_reader, scheduler, side_by_side
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Failed, Finished, Preview, TextPiece
from orthus_jax.models import samplers

P = 16


@pytest.fixture(scope="module")
def model():
  return tiny.lively_model()


def answers(model, requests, **options) -> list[list[str | np.ndarray]]:
  """Each request's response."""
  found = {e.index: e.document for e in model.stream(requests, **options) if isinstance(e, Finished)}
  added = [found[i].segments[len(r.document.segments) :] for i, r in enumerate(requests)]
  return [[s.text if isinstance(s, Text) else s.pixels for s in segments] for segments in added]


def alike(a: list, b: list) -> bool:
  """The same texts, and the same pictures to the rounding of a byte."""
  return len(a) == len(b) and all(
      x == y if isinstance(x, str) else not isinstance(y, str) and np.abs(x.astype(int) - y.astype(int)).max() <= 1
      for x, y in zip(a, b)
  )


def how(model, **fields):
  return dataclasses.replace(model.config.sampling, **fields)


def batch_of(model, prepared, batch_size, *, positions):
  """A scheduler of the size that a stream would choose."""
  holds = capacity.for_requests(prepared, batch_size=batch_size, positions=positions)
  return scheduler.Scheduler(model.network("stored"), holds)


def steps(batch, prepared):
  """What comes of requests, in the order in which they join."""
  waiting = list(enumerate(prepared))
  while waiting or batch.busy:
    while waiting and batch.join(*waiting[0]):
      waiting.pop(0)
    yield from batch.step(others=bool(waiting))


def mixed(model) -> list[Request]:
  pixels = tiny.TinySource()[0].images[0].pixels
  warm = how(model, temperature=1.0, top_k=9, max_new_tokens=9)
  return [
      Request(document("draw a red box"), respond="image", seed=1),
      Request(document(pixels, "what is this"), respond="text", seed=2, sampling=warm),
      Request(document(pixels, "draw a blue box"), respond="image", seed=3),
      Request(document("two"), seed=4, sampling=how(model, max_new_tokens=8, repetition_penalty=3.0)),
      Request(document("red"), respond="image", seed=5, sampling=how(model, guidance=1.0)),
      Request(document("blue"), respond="image", seed=6, sampling=how(model, guidance=4.0, solver="dpm", steps=3)),
      Request(document("what is this"), respond="text", seed=7, sampling=warm),
      Request(document("green"), respond="image", seed=8, sampling=how(model, late_steps=2, guidance_interval=(0.2, 0.8))),
  ]


@pytest.mark.slow
def test_a_request_gets_what_it_would_get_alone(model):
  requests = mixed(model)
  together = answers(model, requests, batch_size=3)  # rows are taken over, guides' lanes too
  holds = model.capacity(requests, batch_size=1)
  for i, request in enumerate(requests):
    # Some by programs that do no more than they ask for.
    assert alike(together[i], answers(model, [request], holds=None if i in (0, 3, 4) else holds)[0]), i
  assert len({str(x) for x in together}) == len(together)


@pytest.fixture(scope="module")
def whole(model):
  """The answers to `mixed` of four rows at a time, all lanes at once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(side_by_side, "parts", lambda *_: 1)
    patch.setattr(scheduler, "_LANES_AT_ONCE", 0)
    return answers(model, mixed(model), batch_size=4)


@pytest.mark.slow
def test_parts_that_threads_move_answer_as_one_batch_does(model, whole, monkeypatch):
  monkeypatch.setattr(side_by_side, "parts", lambda *_: 2)
  assert all(alike(a, b) for a, b in zip(whole, answers(model, mixed(model), batch_size=4)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "codes"])
def test_working_on_some_lanes_at_a_time_changes_nothing(model, whole, monkeypatch, kind):
  requests = mixed(model)
  monkeypatch.setattr(side_by_side, "parts", lambda *_: 1)
  if kind == "codes":
    model = tiny.lively_model(**tiny.SYSTEMS["chameleon"])
    requests = [Request(r.document, respond=r.respond, seed=r.seed) for r in requests]
    monkeypatch.setattr(scheduler, "_LANES_AT_ONCE", 0)
    whole = answers(model, requests, batch_size=8)
  monkeypatch.setattr(scheduler, "_LANES_AT_ONCE", 6)
  monkeypatch.setattr(drawing, "_SHORTEST", 16)  # slots that are looked at: 16, 32 or all
  assert all(alike(a, b) for a, b in zip(whole, answers(model, requests, batch_size=8)))


# A batch has one of a few sizes, each of which is compiled once.
_COUNTS = st.sampled_from([1, 2, 7, 12, 20]).flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n))
_places = jax.jit(drawing._places, static_argnames=("most", "chunk"))


@pytest.mark.slow
@settings(deadline=None)
@given(_COUNTS, st.sampled_from([6, 7, 12, 16]))
def test_places_of_lanes(counts, chunk):
  row_N, nth_N, used = map(np.asarray, _places(jnp.asarray(counts), most=3, chunk=chunk))
  places = {r: [n for n in range(len(row_N)) if row_N[n] == r] for r in range(len(counts))}
  for row, count in enumerate(counts):
    assert [int(nth_N[n]) for n in places[row]] == list(range(count))  # side by side, in order
    assert len({n // chunk for n in places[row]}) <= 1 and all(n < used for n in places[row])
  # A row's lanes don't stand in two chunks; where these aren't full of rows of two or three lanes, such begin with one.
  wasted = 3 + sum(chunk % c * -(-counts.count(c) // (chunk // c)) + (chunk if chunk % c else 0) for c in (2, 3))
  assert used <= len(row_N) and used <= sum(counts) + wasted


@pytest.mark.slow
def test_a_prompt_of_guidance_is_read_once(model, monkeypatch):
  read = []

  def count(graphdef, params, cache, prompts, *, window):
    read.extend(x for x in np.asarray(prompts.lane_A) if x < 4)
    return whole(graphdef, params, cache, prompts, window=window)

  whole = engine.read
  monkeypatch.setattr(scheduler.engine, "read", count)
  requests = [Request(document(word), respond="image", seed=i) for i, word in enumerate(("red", "blue", "two", "one", "box"))]
  drawn = answers(model, requests, batch_size=2)
  assert len(drawn) == 5 and sum(x >= 2 for x in read) == 2 and sum(x < 2 for x in read) == 5


@pytest.mark.slow
def test_a_lane_that_holds_another_prompt_is_read_anew(model):
  pixels = tiny.TinySource()[0].images[0].pixels
  other = how(model, unconditional_prompt="two blue")
  requests = [
      Request(document("red"), respond="image"), Request(document("red"), respond="image", sampling=other),
      Request(document(pixels, "red"), respond="image"), Request(document("red"), respond="image", sampling=other),
  ]  # fmt: skip
  together = answers(model, requests, batch_size=1)
  assert alike(together[1], together[3]) and not alike(together[0], together[1])
  assert all(alike(together[i], answers(model, [requests[i]])[0]) for i in (1, 2))


@pytest.mark.slow
def test_reading_in_chunks_changes_nothing(model, monkeypatch):
  pixels = tiny.TinySource()[0].images[0].pixels
  requests = [
      Request(document(pixels, "what is this", pixels, "draw a blue box a red box one two"), respond="image"),
      Request(document("red"), respond="image"),
  ]
  whole = answers(model, requests)
  monkeypatch.setattr(prompt_reader, "_CHUNK", 8)
  assert all(alike(a, b) for a, b in zip(whole, answers(model, requests)))


@pytest.mark.slow
def test_looking_at_what_there_is_alone_changes_nothing(model, monkeypatch):
  windows = []

  def note(*args, config, program):
    windows.append(program.window)
    return whole(*args, config=config, program=program)

  whole, note.few_rows = engine.advance.few_rows, note
  monkeypatch.setattr(scheduler.engine, "advance", note)
  requests = [Request(document("two"), sampling=how(model, max_new_tokens=90)), Request(document("red"), respond="image")]
  monkeypatch.setattr(scheduler, "_SHORT", 32)
  prepared = [model.prepare(r) for r in requests]

  def run():
    windows.clear()
    found = {}
    for step in steps(batch_of(model, prepared, 2, positions=4), prepared):
      found.setdefault(step.ticket, []).extend((int(t), *f) for t, f in zip(step.tokens_N, step.features_NC))
    return found

  halved = run()
  assert len(set(windows)) >= 2 and windows == sorted(windows)
  monkeypatch.setattr(scheduler, "_SHORT", 1 << 20)
  all_slots = run()
  assert set(windows) == {128}
  for ticket, values in all_slots.items():
    np.testing.assert_allclose(halved[ticket], values, atol=2e-4)


@pytest.mark.slow
def test_how_often_the_host_looks_changes_nothing(model):
  requests = mixed(model)[:4]
  prepared = [model.prepare(r) for r in requests]

  def run(positions):
    found = {}
    for step in steps(batch_of(model, prepared, 2, positions=positions), prepared):
      found.setdefault(step.ticket, []).extend(step.tokens_N.tolist())
    return found

  assert run(5) == run(64)


@pytest.mark.slow
def test_options_that_come_to_the_same(model):
  base = Request(document("draw a red box"), respond="image", seed=3)

  def asked(**fields):
    return dataclasses.replace(base, sampling=how(model, **fields))

  # One program for all.
  holds = model.capacity([asked(), asked(late_steps=2), asked(solver="dpm"), asked(solver="ddpm")], batch_size=1)

  def drawn(**fields):
    return answers(model, [asked(**fields)], holds=holds)[0]

  plain = drawn()
  assert alike(plain, drawn(late_steps=2, late_from=1.0))
  assert alike(drawn(steps=2), drawn(late_steps=2, late_from=0.0))
  assert alike(drawn(guidance=1.0), drawn(guidance_interval=(0.0, 0.0)))
  assert not alike(plain, drawn(guidance_interval=(0.0, 0.5))) and not alike(plain, drawn(late_steps=2))
  assert not alike(plain, drawn(solver="dpm")) and not alike(plain, drawn(solver="ddpm"))


def test_streams_tell_of_what_is_there(model):
  requests = mixed(model)[:4]
  events = list(model.stream(requests, preview_rows=1))
  finished = {e.index: e.document for e in events if isinstance(e, Finished)}
  for i, request in enumerate(requests):
    said = [s.text for s in finished[i].segments[len(request.document.segments) :] if isinstance(s, Text)]
    assert "".join(e.text for e in events if isinstance(e, TextPiece) and e.index == i).split() == " ".join(said).split()
  shown = [e for e in events if isinstance(e, Preview) and e.index == 0]
  assert [e.done for e in shown] == [4, 8, 12]
  for e in shown:
    assert (e.pixels[e.done // 2 :] == 128).all() and not (e.pixels[: e.done // 2] == 128).all()
  assert events.index(shown[-1]) < next(i for i, e in enumerate(events) if isinstance(e, Finished) and e.index == 0)


def test_one_bad_request_harms_no_other(model):
  pixels = np.zeros((8, 8, 3), np.uint8)
  requests = [
      Request(document("red"), respond="image"),
      Request(document("red " * 200)),
      Request(document("red"), sampling=how(model, steps=2000)),
      Request(document("red"), max_images=9),
      Request(document()),
      Request(document(*[pixels] * 7), respond="image"),
      Request(document("blue"), respond="image"),
      Request(document("red"), max_images=-1),
      Request(document("red"), seed=1 << 40),
  ]
  events = list(model.stream(requests))
  said = {e.index: e.reason for e in events if isinstance(e, Failed)}
  assert {e.index for e in events if isinstance(e, Finished)} == {0, 6} and said.keys() == {1, 2, 3, 4, 5, 7, 8}
  assert "shorten the prompt" in said[1] and "at most 1000" in said[2] and "don't fit" in said[3] and "is empty" in said[4]
  assert "must not be negative" in said[7] and "must have 32 bits" in said[8]
  with pytest.raises(BadRequest, match="shorten the prompt"):
    list(model.stream(requests, strict=True))


@pytest.mark.slow
def test_room_is_kept_for_the_pictures_that_are_asked_for(model):
  # As in the released script: where fewer places are left than a picture takes, none can begin, and only text comes.
  prompt = document("two")
  eager = tiny.eager_to_draw(model, prompt)
  sampling = how(model, max_new_tokens=P, guidance=1.0)
  without = answers(eager, [Request(prompt, sampling=sampling)])[0]
  within = answers(eager, [Request(prompt, sampling=sampling, max_images=2)])[0]
  assert all(isinstance(x, str) for x in without)
  assert sum(not isinstance(x, str) for x in within) == 2


@pytest.mark.parametrize("asked", [dict(max_images=1), dict(respond="image"), dict(respond="image", plan=True)])
def test_a_picture_needs_room_for_its_beginning_patches_and_end(model, asked):
  sampling, found = how(model, guidance=1.0, plan=asked.get("plan", False)), set()
  for n in range(44, 60):
    prompt = document("red " * (n // 2 * 2) + "x" * (n % 2))
    room = model.config.model.transformer.max_positions - len(model.prepare(Request(prompt, respond="text")).main)
    found.add(room)
    try:
      model.prepare(Request(prompt, sampling=sampling, **{k: v for k, v in asked.items() if k != "plan"}))
      fits = True
    except BadRequest as e:
      fits = False
      assert "don't fit" in str(e)
    assert fits == (room >= P + 2), room
  assert {P + 1, P + 2} <= found


@pytest.mark.parametrize("ask, why", [
    (lambda m: m.stream([], batch_size=0), "batch_size=0 must be at least 1"),
    (lambda m: m.generate([document("red")], batch_size=-1), "batch_size=-1 must be at least 1"),
    (lambda m: m.stream([], preview_rows=-1), "preview_rows=-1 must not be negative"),
    (lambda m: m.capacity([], batch_size=2), "there is no request"),
    (lambda m: how(m, unconditional_prompt=" "), "unconditional_prompt is empty"),
])  # fmt: skip
def test_what_would_never_end_or_end_deep_inside_is_refused(model, ask, why):
  with pytest.raises(BadRequest, match=why):
    ask(model)


def test_what_was_said_becomes_less_likely():
  logits = jnp.asarray([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
  said = jnp.asarray([[True, True, False], [False, False, False]])
  np.testing.assert_allclose(
      samplers.repeat_less(logits, said, jnp.asarray([4.0, 4.0])), [[0.5, -8.0, 1.0], [2.0, -2.0, 1.0]]
  )


@pytest.mark.slow
def test_the_state_lies_on_the_mesh(model):
  from orthus_jax.config import MeshConfig
  from orthus_jax.models.orthus import describe
  from orthus_jax.parallel import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(MeshConfig(fsdp=4, tensor=2), devices=jax.devices()[:8])
  axes = describe(model.config.model)[2]
  params = {n: jax.device_put(v, mesh_lib.sharding(mesh, v.shape, axes[n])) for n, v in model.params.items()}
  requests = [Request(document(w), respond="image", seed=i) for i, w in enumerate(("red", "blue", "two", "one"))]
  on_mesh = dataclasses.replace(model, params=params)
  batch = batch_of(on_mesh, [on_mesh.prepare(r) for r in requests], 4, positions=64)
  assert len(batch._state.cache.k_LXSKH.sharding.device_set) == 8 and not batch._state.cache.k_LXSKH.is_fully_replicated
  assert all(alike(a, b) for a, b in zip(answers(model, requests), answers(on_mesh, requests)))


def test_memory_is_the_cache_and_little_else(model):
  size = scheduler.Size(rows=8, guides=8, slots=4096)
  with_cache = scheduler._maker(model.config.model, size, None)
  state = jax.eval_shape(with_cache)
  net = model.network("stored")
  program = engine_state.Program(positions=8, window=4096, solvers=(("ddim", 4),), ids=net.ids)
  lowered = engine.advance.lower(
      net.graphdef, net.params, state, net.text_V, np.int32(9), config=net.config, program=program
  )
  memory = lowered.compile().memory_analysis()
  cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
  params = sum(x.nbytes for x in net.params.values())
  assert memory.alias_size_in_bytes >= cache  # given back in place
  assert memory.argument_size_in_bytes <= 1.1 * (cache + params)
  # One layer's keys and values are laid out anew for the product; this model has two layers. A GPU cuts them out first.
  assert memory.temp_size_in_bytes <= (1.1 if jax.default_backend() == "gpu" else 0.6) * cache


@pytest.mark.slow
def test_weights_are_held_as_they_are_used():
  # What training has in float32 is read in bfloat16 at every position, or in 8 bits.
  wide = tiny.lively_model(model__transformer__dtype="bfloat16")
  wide = dataclasses.replace(wide, params={n: v.astype(np.float32) for n, v in wide.params.items()})
  model = Model.create(wide.config, wide.params, wide.tokenizer)
  assert {str(v.dtype) for n, v in model.params.items() if n.startswith(("transformer/", "lm_head"))} == {"bfloat16"}
  assert {str(v.dtype) for n, v in model.params.items() if n.startswith("vision_")} == {"float32"}
  requests = [Request(document("draw a red box"), respond="image", seed=1), Request(document("two"), respond="text", seed=2)]
  assert all(alike(a, b) for a, b in zip(answers(model, requests), answers(wide, requests)))
  eight = [dataclasses.replace(r, sampling=how(model, weights="int8")) for r in requests]
  expected, before = answers(model, eight), sum(v.nbytes for v in model.params.values())
  small = Model.create(wide.config, wide.params, wide.tokenizer).in_int8()
  assert all(alike(a, b) for a, b in zip(answers(small, eight), expected))
  assert sum(v.nbytes for v in small.params.values()) < before
  with pytest.raises(BadRequest, match="in int8 alone"):
    small.prepare(requests[0])

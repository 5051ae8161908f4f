"""Every system of the paper holds what Orthus holds: against a plain loop, beside neighbours, by gradients, on a mesh."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from orthus_jax.config import ImageHeadConfig
from orthus_jax.config.image_head import OF_CODES, SAMPLING_FIELDS
from orthus_jax.data.documents import Image, document
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.sequence import layout, unconditional
from orthus_jax.errors import BadRequest
from orthus_jax.inference.prompt_reader import cuts
from orthus_jax.inference.requests import Lane, Request
from orthus_jax.inference.responses import Finished
from orthus_jax.models import params as params_lib, systems
from orthus_jax.models.heads import masked
from orthus_jax.models.orthus import describe, last_seen
from orthus_jax.training import loop
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()
P, C = 16, 4
OTHERS = [name for name in tiny.SYSTEMS if name != "orthus"]


def nothing(sampling):
  return layout(unconditional(document(), sampling.unconditional_prompt), TK, patches=P, respond=True)


def features_of(items):
  return np.stack([i for i in items if not isinstance(i, int)]).reshape(-1, P, C)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_drawing_agrees_with_a_plain_loop(name):
  model = tiny.lively_model(**tiny.SYSTEMS[name])
  pixels = tiny.TinySource()[0].images[0].pixels
  prompt = document(pixels, "draw a blue box")
  sampling = dataclasses.replace(model.config.sampling, guidance=3.0, image_guidance=1.5)
  kept = layout(unconditional(prompt, sampling.unconditional_prompt, keep_images=True), TK, patches=P, respond=True)
  items = plain.answer(
      model, layout(prompt, TK, patches=P, respond=True), seed=7, weights=[3.0, 1.5 - 3.0, 1 - 1.5],
      branches=[kept, nothing(sampling)], max_new=P + 2, first_boi=True,
  )  # fmt: skip
  drawn = model.generate([prompt], respond="image", sampling=sampling, seeds=[7])[0]
  assert [type(s) for s in drawn.segments[2:]] == [Image]
  expected = model.decode(features_of(items))[0]
  assert np.abs(drawn.images[-1].pixels.astype(int) - expected.astype(int)).max() <= 1  # rounding


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path):
  """Of the system that draws most on the way: what is hidden; the others share the rest of its lines with Orthus."""

  def train(folder, steps):
    # A constant rate, as a schedule would look at how long the run is to be.
    config = tiny.config(**tiny.SYSTEMS["showo"], run__steps=steps, optimizer__schedule="constant", optimizer__warmup_steps=0)
    (folder / "config.json").unlink(missing_ok=True)
    checkpoint.open_workdir(folder, config, TK)
    return loop.train(config, folder, OrthusTask(config, Pipeline(tiny.TinySource(), TK, config)))

  whole, half = train(tmp_path / "whole", 2), train(tmp_path / "part", 1)
  assert half.params_digest != whole.params_digest
  assert train(tmp_path / "part", 2).params_digest == whole.params_digest


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_free_interleaving_agrees_with_a_plain_loop(name):
  """What follows a picture reads it, and a second picture is guided afresh."""
  model, prompt = tiny.lively_model(**tiny.SYSTEMS[name]), document("two")
  eager = tiny.eager_to_draw(model, prompt)
  sampling = dataclasses.replace(model.config.sampling, guidance=2.0, max_new_tokens=60)
  items = plain.answer(
      eager, layout(prompt, TK, patches=P, respond=True), seed=0, weights=[2.0, -1.0], branches=[nothing(sampling)],
      max_new=60, first_boi=False,
  )  # fmt: skip
  story = eager.generate([prompt], sampling=sampling, seeds=[0])[0].segments[1:]
  said = [s.text for s in story if not isinstance(s, Image)]
  drawn, expected = [s.pixels for s in story if isinstance(s, Image)], model.decode(features_of(items))
  assert items[0] == TK.boi and len(drawn) >= 2 and len(expected) == len(drawn)
  tokens = [i if isinstance(i, int) else TK.image for i in items]
  words = TK.decode([t for t in tokens if t != TK.image])
  assert "".join("".join(said).split()) == "".join(words.split())
  for a, b, limit in zip(drawn[:2], expected, (0.5, 3.0)):
    assert np.abs(a.astype(int) - b.astype(int)).mean() <= limit


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_request_does_not_depend_on_its_neighbours(name):
  model = tiny.lively_model(**tiny.SYSTEMS[name])
  prompts = [document("draw a red box"), document("two"), document(tiny.TinySource()[0].images[0].pixels, "what is this")]
  responds = ["image", "image", "text"]
  def run(chosen):
    requests = [Request(prompts[i], respond=responds[i], seed=5 + i) for i in chosen]
    found = {e.index: e.document for e in model.stream(requests, strict=True) if isinstance(e, Finished)}
    return {i: found[n] for n, i in enumerate(chosen)}

  together = run([0, 1, 2])
  for i in range(3):
    alone = run([i])[i]
    for a, b in zip(together[i].segments, alone.segments, strict=True):
      if isinstance(a, Image):
        assert np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max() <= 1
      else:
        assert a.text == b.text


def _loss_of(config):
  graphdef, shapes, _ = describe(config.model)
  rng = np.random.default_rng(0)
  params = {n: jnp.asarray(0.1 * rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
  pipeline = Pipeline(tiny.TinySource(), TK, config)
  task, batch = OrthusTask(config, pipeline), pipeline.batch(0)
  B, M = batch.images.shape[:2]  # features, so that no test compiles the encoder
  batch = batch._replace(images=rng.standard_normal((B, M, P, C)).astype(np.float32))
  row_B = jnp.arange(config.run.batch_size)

  @jax.jit
  def loss(params, batch):
    model = params_lib.merge(graphdef, params)
    return task.loss(model, batch, jax.random.key(0), total=task.counts(batch), row_B=row_B)

  return loss, params, batch


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_ways_of_computing_a_loss_agree(name):
  base = dict(tiny.SYSTEMS[name], model__transformer__layers=1)
  found = {}
  for way, changes in {
      "whole": dict(model__transformer__loss_chunk=0), "chunks": dict(model__transformer__loss_chunk=8),
      "merged": dict(model__transformer__merge_positions=True),
  }.items():  # fmt: skip
    loss, params, batch = _loss_of(tiny.config(**base, **changes))
    value, gradient = jax.value_and_grad(lambda p: loss(p, batch)[0])(params)
    found[way] = float(value), {n: np.asarray(g) for n, g in gradient.items()}
  for way in ("chunks", "merged"):
    assert found[way][0] == pytest.approx(found["whole"][0], rel=1e-5)
    for n, g in found["whole"][1].items():
      np.testing.assert_allclose(found[way][1][n], g, atol=1e-5, err_msg=f"{way} {n}")


@pytest.mark.parametrize("name", ["chameleon", "showo"])
def test_codes_cost_what_the_lm_head_says_of_them(name):
  """Against the plain sum of -log softmax over the whole vocabulary: of learnt patches, or of those of them that are hidden."""
  loss, params, batch = _loss_of(config := tiny.config(**tiny.SYSTEMS[name]))
  model = params_lib.merge(describe(config.model)[0], params)
  B, M = batch.images.shape[:2]
  learnt = (np.asarray(batch.learnt_image_BG)[:, :, None] == np.arange(M)).any(1)
  hidden, count, own = None, P, 0
  if name == "showo":
    drawn = masked.MaskedHead.hidden(jax.random.key(0), jnp.arange(B), images=M, patches=P)
    hidden, count, own = np.asarray(drawn) & learnt[..., None], masked.MaskedHead.learnt_patches(P), 1
  states = model(
      batch.tokens_BT, features_BJC=batch.images.reshape(B, -1, C), slot_BT=batch.slot_BT, position_BT=batch.position_BT,
      segment_ids_BT=batch.segment_ids_BT, shared_ids_BT=batch.shared_ids_BT,
      hidden_BJ=None if hidden is None else jnp.asarray(hidden.reshape(B, -1)),
  )  # fmt: skip
  log_p = np.asarray(jax.nn.log_softmax(model.logits(states), axis=-1))
  codebook = np.asarray(params["vision_tokenizer/codebook"])
  total = pictures = 0
  for b, row in enumerate(np.asarray(batch.learnt_image_BG)):
    for image, start in {(int(i), int(s)) for i, s in zip(row, batch.learnt_start_BG[b]) if i >= 0}:
      pictures += 1
      for p in range(P):
        code = np.square(batch.images[b, image, p] - codebook).sum(-1).argmin()
        if hidden is None or hidden[b, image, p]:  # a hidden patch is told by its own state, another by the one before
          total -= log_p[b, start + p + own, config.model.image_token_start + code]
  assert float(loss(params, batch)[1]["image_loss"]) == pytest.approx(total / (count * pictures), rel=1e-4)


def test_hidden_patches_are_learnt_and_nothing_of_them_is_seen():
  """A hidden patch changes nothing of what the model is fed; one that is shown does."""
  config = tiny.config(**tiny.SYSTEMS["showo"])
  loss, params, batch = _loss_of(config)
  graphdef = describe(config.model)[0]
  M = batch.images.shape[1]
  hidden = np.asarray(masked.MaskedHead.hidden(jax.random.key(0), jnp.arange(400), images=M, patches=P))
  assert (hidden.sum(-1) >= 1).all() and hidden.mean() == pytest.approx(2 / np.pi, abs=0.03)
  assert masked.MaskedHead.learnt_patches(1024) == pytest.approx(1024 * 2 / np.pi, rel=1e-3)
  model = params_lib.merge(graphdef, params)
  features = jnp.asarray(np.random.default_rng(1).standard_normal((1, M * P, C)), jnp.float32)
  patches = model.embed_features(features)
  other = model.embed_features(features + 10.0)
  hides = jnp.asarray(hidden[:1].reshape(1, -1))
  a, b = (np.asarray(model.hide(x, hides)) for x in (patches, other))
  changed = np.abs(a - b).max(-1)[0] > 0
  assert not changed[hidden[0].reshape(-1)].any() and changed[~hidden[0].reshape(-1)].any()


def test_full_attention_reaches_to_the_end_of_a_picture_and_no_further():
  config = tiny.config(**tiny.SYSTEMS["showo"])
  model = tiny.lively_model(**tiny.SYSTEMS["showo"])
  net = params_lib.merge(model.graphdef, model.params)
  T, first = 40, 6
  slot = np.full((1, T), -1)
  slot[0, first : first + P] = np.arange(P)
  second = first + P + 2  # a picture behind it
  slot[0, second : second + P] = P + np.arange(P)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, T, 32)), jnp.float32)
  last = last_seen(jnp.asarray(slot), jnp.arange(T)[None], P)

  def states(x):
    return net.transformer(x, position_BT=jnp.arange(T)[None], segment_ids_BT=jnp.ones((1, T), int), last_BT=last)[0]

  reach = np.abs(jax.jacobian(lambda x: states(x).sum(-1))(x)).max(-1)[:, 0] > 0  # [T, T]: which state sees which input
  inside = [(first, first + P), (second, second + P)]
  expected = np.tril(np.ones((T, T), bool))
  for a, b in inside:
    expected[a:b, a:b] = True
  np.testing.assert_array_equal(reach, expected)
  assert config.model.transformer.image_attention == "full"


@pytest.mark.parametrize(
    "cut, whole, expected", [(8, False, [0, 8, 16, 24, 26]), (16, True, [0, 4, 20, 26]), (26, True, [0, 26])]
)
def test_prompts_are_cut_where_pictures_allow(cut, whole, expected):
  patch = np.concatenate([np.full(4, -1), np.arange(P), np.full(6, -1)]).astype(np.int32)
  lane = Lane(tokens_T=np.zeros(26, np.int32), patch_T=patch, pictures=(), weight=1.0)
  assert cuts(lane, cut, whole_pictures=whole) == expected


@pytest.mark.parametrize("S", [1, 2, 5, 18, 64])
def test_noise_is_annealed_by_the_product_of_all_passes(S):
  expected = np.cumprod([1 - s / S for s in range(1, S + 1)])
  np.testing.assert_allclose(masked.annealing(jnp.arange(1, S + 1), jnp.full(S, S)), expected, rtol=2e-4, atol=1e-7)


def test_passes_are_no_other_program():
  model = tiny.lively_model(**tiny.SYSTEMS["showo"])
  few = Request(document("a"), respond="image", sampling=dataclasses.replace(model.config.sampling, steps=2))
  assert model.prepare(few).solvers == model.prepare(Request(document("a"), respond="image")).solvers
  assert not model.capacity([Request(document("a"), respond="image")], batch_size=1).refusal(model.prepare(few))


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(model__image_head__kind="masked", model__vision_embedding__kind="argmin", model__diffusion={}),
         "image_attention=full, not causal"),
        (dict(model__transformer__image_attention="full"), "would see the patch itself"),
        (dict(model__image_head__kind="codes", model__diffusion={}), "vision_embedding.kind=soft reads"),
        (dict(model__image_head__kind="codes", model__vision_embedding__kind="argmin"), "model.diffusion.width=16 is nothing"),
        (dict(model__image_head__kind="regression"), "model.diffusion.draws=2 is nothing"),
        (dict(model__image_head__loss_weight=2.0), "set model.diffusion.loss_weight"),
        (dict(tiny.SYSTEMS["chameleon"], sampling=dict(steps=25)),
         "sampling.steps=25 is for image_head.kind=diffusion and masked"),
        (dict(sampling=dict(image_top_k=5)), "sampling.image_top_k=5 is for image_head.kind=codes"),
        (dict(tiny.SYSTEMS["regression"], sampling=dict(image_temperature=0.5)), "kind=diffusion, codes and masked, and this"),
        (dict(tiny.SYSTEMS["showo"], sampling=dict(solver_loop="kernel")), "solver_loop=kernel is for image_head.kind"),
        (dict(tiny.SYSTEMS["showo"], model__transformer__attention="splash"), None),
    ],
)  # fmt: skip
def test_parts_that_make_no_sense_together_are_refused(changes, said):
  if said is None:
    loss, params, batch = _loss_of(tiny.config(**changes))
    with pytest.raises(BadRequest, match="splash can't do model.transformer.image_attention=full"):
      loss(params, batch)
    return
  with pytest.raises(BadRequest, match=said):
    tiny.config(**changes)


@pytest.mark.parametrize("name, said", [("showo", "at most 16, the patches"), ("orthus", "at most 1000, the model's time")])
@pytest.mark.parametrize("draws", [dict(run__report=True), dict(run__sample_every=2)])
def test_passes_that_no_picture_can_take_are_refused_before_training(name, said, draws, tmp_path):
  from orthus_jax import training_run

  parts = dict(tiny.SYSTEMS[name])
  sampling = dict(parts.pop("sampling", {}), steps=1001)
  with pytest.raises(BadRequest, match=f"sampling.steps=1001 must be {said}"):
    training_run.run(tiny.config(**parts, **draws, sampling=sampling), tmp_path / "run", begin=0.0)
  assert not (tmp_path / "run").exists()


def test_a_part_of_another_system_can_be_the_start(monkeypatch):
  from orthus_jax.training import initial_state
  from orthus_jax.training.checkpoints.origins import Origin

  has = {n: np.zeros(1) for n in ("transformer/norm/scale", "lm_head", "image_head/hidden_embedding")}
  showo = Origin("runs/showo", tiny.config(**tiny.SYSTEMS["showo"]))
  monkeypatch.setattr(initial_state.origins, "of", lambda path: showo)
  monkeypatch.setattr(
      initial_state.checkpoint, "load_params", lambda path, wanted, **_: {n: v for n, v in has.items() if wanted(n)}
  )
  assert set(initial_state._taken(tiny.config(), "runs/showo", "transformer/", {}, {})) == {"norm/scale"}
  with pytest.raises(BadRequest, match="runs/showo has no parameter transfromer/…"):
    initial_state._taken(tiny.config(), "runs/showo", "transfromer/", {}, {})


def test_every_kind_is_in_the_table():
  kinds = set(typing.get_args(typing.get_type_hints(ImageHeadConfig)["kind"]))
  assert kinds == set(systems.IMAGE_HEADS) == set(SAMPLING_FIELDS)
  assert {k for k, head in systems.IMAGE_HEADS.items() if head.of_codes} == set(OF_CODES)

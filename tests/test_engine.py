"""The compiled generation loop against a plain one that runs the whole row anew for every position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from orthus_jax.data.documents import Image, document
from orthus_jax.data.sequence import layout, unconditional
from orthus_jax.errors import BadRequest
from orthus_jax.inference.model import Model
from orthus_jax.models import samplers

TK = tiny.tokenizer()
CONFIG = tiny.config(model__vision_embedding__patch_positions=True)
P, C = 16, 4


@pytest.fixture(scope="module")
def model() -> Model:
  return tiny.lively_model()


def pictures_of(model, items):
  features = np.stack([i for i in items if not isinstance(i, int)]).reshape(-1, P, C)
  return model.decode(features)


@pytest.mark.slow
@pytest.mark.parametrize("edit, kind", [(False, "soft"), (True, "soft"), (True, "argmin"), (False, "linear")])
def test_drawing_agrees_with_a_plain_loop(model, edit, kind):
  model = model if kind == "soft" else tiny.lively_model(model__vision_embedding__kind=kind)
  pixels = tiny.TinySource()[0].images[0].pixels
  prompt = document(pixels, "draw a blue box") if edit else document("draw a red box")
  sampling = dataclasses.replace(CONFIG.sampling, guidance=3.0, image_guidance=1.5)
  nothing = layout(unconditional(document(), sampling.unconditional_prompt), TK, patches=P, respond=True)
  if edit:
    kept = layout(unconditional(prompt, sampling.unconditional_prompt, keep_images=True), TK, patches=P, respond=True)
    branches, weights = [kept, nothing], [3.0, 1.5 - 3.0, 1 - 1.5]
  else:
    branches, weights = [nothing], [3.0, -2.0]
  laid = layout(prompt, TK, patches=P, respond=True)
  items = plain.answer(model, laid, seed=7, weights=weights, branches=branches, max_new=P + 2, first_boi=True)
  drawn = model.generate([prompt], respond="image", sampling=sampling, seeds=[7])[0]
  assert [type(s) for s in drawn.segments[len(prompt.segments):]] == [Image]
  difference = np.abs(drawn.images[-1].pixels.astype(int) - pictures_of(model, items)[0].astype(int))
  assert difference.max() <= 1  # rounding


@pytest.mark.slow
def test_free_interleaving_agrees_with_a_plain_loop(model):
  prompt = document("two")
  laid = layout(prompt, TK, patches=P, respond=True)
  eager = tiny.eager_to_draw(model, prompt)
  sampling = dataclasses.replace(CONFIG.sampling, guidance=2.0, max_new_tokens=60)
  nothing = layout(unconditional(document(), sampling.unconditional_prompt), TK, patches=P, respond=True)
  items = plain.answer(eager, laid, seed=0, weights=[2.0, -1.0], branches=[nothing], max_new=60, first_boi=False)
  story = eager.generate([prompt], sampling=sampling, seeds=[0])[0].segments[1:]
  drawn, expected = [s.pixels for s in story if isinstance(s, Image)], pictures_of(eager, items)
  assert items[0] == TK.boi and len(drawn) >= 2 and len(expected) >= 2  # guidance starts afresh at the second
  # Rounding grows from patch to patch, as each is drawn from the ones before.
  for a, b, limit in zip(drawn[:2], expected, (0.5, 3.0)):
    assert np.abs(a.astype(int) - b.astype(int)).mean() <= limit


@pytest.mark.slow
def test_a_request_does_not_depend_on_its_neighbours(model):
  prompts = [document("draw a red box"), document("two"), document("draw a blue box"), document("what is this")]
  together = model.generate(prompts, respond="image", seeds=[5, 6, 7, 8])
  reordered = model.generate(prompts[::-1], respond="image", seeds=[8, 7, 6, 5], batch_size=2)[::-1]
  for i, d in enumerate(together):
    alone = model.generate([prompts[i]], respond="image", seeds=[5 + i])[0]
    for other in (alone, reordered[i]):
      assert np.abs(d.images[0].pixels.astype(int) - other.images[0].pixels.astype(int)).max() <= 1
  still = dataclasses.replace(CONFIG.sampling, image_temperature=0.0)
  alike = model.generate(prompts[:1] * 2, respond="image", seeds=[5, 99], sampling=still)
  a, b, other = (d.images[0].pixels.astype(int) for d in (*alike, together[0]))
  assert np.abs(a - b).max() <= 1 < np.abs(a - other).max()
  again = model.generate(prompts[:1], respond="image", seeds=[99])[0]
  assert np.abs(again.images[0].pixels.astype(int) - together[0].images[0].pixels.astype(int)).max() > 1


def test_text_holds_no_pictures_and_ends(model):
  sampling = dataclasses.replace(CONFIG.sampling, max_new_tokens=6)
  answers = model.generate([document("what is this"), document("red")], respond="text", sampling=sampling)
  for d in answers:
    assert not d.images
    longest = max(len(TK.decode([i])) for i in range(TK.vocab_size))
    assert len("".join(s.text for s in d.segments[1:])) <= 6 * longest


def test_requests_that_cannot_be_served(model):
  with pytest.raises(BadRequest, match="takes .* positions of at most 128: shorten the prompt"):
    model.generate([document("red " * 200)])
  with pytest.raises(BadRequest, match="is empty"):
    model.generate([document()])
  with pytest.raises(BadRequest, match="2 seeds for 1 documents"):
    model.generate([document("red")], seeds=[1, 2])


def _draws(n=4000, **options):
  logits = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1]))
  options = dict(temperature=1.0, top_k=0, top_p=1.0) | options
  allowed = jnp.asarray([True, True, True, options.pop("last", True)])
  keys = jax.random.split(jax.random.key(0), n)
  how = samplers.TokenSampling(**{k: jnp.full(n, v) for k, v in options.items()}, repetition_penalty=jnp.ones(n))
  tokens = samplers.sample_token(jnp.broadcast_to(logits, (n, 4)), jnp.broadcast_to(allowed, (n, 4)), keys, how)
  return np.bincount(tokens, minlength=4) / n


def test_samplers():
  np.testing.assert_allclose(_draws(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
  np.testing.assert_allclose(_draws(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
  np.testing.assert_allclose(_draws(top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=0.03)
  np.testing.assert_allclose(_draws(temperature=0.0), [1, 0, 0, 0])
  assert _draws(last=False)[3] == 0
  assert _draws(temperature=4.0)[3] > 0.15

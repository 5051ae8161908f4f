"""The backbone against `transformers`' Chameleon: same random weights, same inputs, layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orthus_jax.models import attention
from orthus_jax.models.transformer import Cache

import chameleon
from measured import close, relative_error

STYLES = ("7B", "34B")
LENGTHS = (19, 11, 1)  # of a batch's rows; the shorter ones are padded on the left


@pytest.fixture(scope="module", params=STYLES)
def style(request):
  return request.param


@pytest.fixture(scope="module")
def pair(style):
  return chameleon.pair(style)


def prompts(lengths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Random text on the right of padding: ids, which are real, and positions that count real ones from 0."""
  rng, T = np.random.default_rng(0), max(lengths)
  real_BT = np.arange(T) >= T - np.asarray(lengths)[:, None]
  ids_BT = np.where(real_BT, rng.choice(np.asarray(chameleon.TEXT), real_BT.shape), 1)
  return ids_BT, real_BT, np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)


def theirs_on(pair, ids_BT, real_BT, position_BT, **more):
  torch = chameleon.reference("torch")
  with torch.no_grad():
    return pair.theirs(
        input_ids=torch.from_numpy(ids_BT), attention_mask=torch.from_numpy(real_BT.astype(np.int64)),
        position_ids=torch.from_numpy(position_BT), **more,
    )  # fmt: skip


def ours_by_layer(model, ids_BT, real_BT, position_BT) -> list[jax.Array]:
  """Embeddings, the states after each layer, and those after the final norm."""
  attend = functools.partial(attention.causal_attention, segment_ids_BT=jnp.asarray(real_BT, jnp.int32))
  states = [model.embed_tokens(jnp.asarray(ids_BT))]
  for l in range(model.config.transformer.layers):
    layer = jax.tree.map(lambda x: x[l], model.transformer.layers)
    states.append(layer(states[-1], jnp.asarray(position_BT), attend))
  return [*states, model.transformer.norm(states[-1])]


@pytest.mark.parametrize("lengths", [(17,), LENGTHS], ids=["one", "batch"])
def test_every_layer(pair, style, lengths):
  inputs = prompts(lengths)
  real = inputs[1]
  out = []
  theirs = chameleon.layer_states(pair.theirs, lambda: out.append(theirs_on(pair, *inputs)))
  ours = jax.jit(ours_by_layer)(pair.ours(), *inputs)
  assert len(theirs) == pair.config.transformer.layers + 1 == len(ours) - 1
  for l, (value, expected) in enumerate(zip(ours, theirs)):
    what = f"layer {l}" if l else "token embedding"
    close(f"{style} style, {what}", np.asarray(value)[real], expected[real], 1e-5)
  hidden = pair.theirs.model.norm(chameleon.reference("torch").from_numpy(theirs[-1])).detach().numpy()
  close(f"{style} style, final norm", np.asarray(ours[-1])[real], hidden[real], 1e-5)
  # The scanned layers are these layers.
  scanned = pair.ours().transformer(ours[0], position_BT=inputs[2], segment_ids_BT=real.astype(np.int32))
  close(f"{style} style, final norm", np.asarray(scanned)[real], hidden[real], 1e-5)
  check_logits(pair, style, np.asarray(pair.ours().logits(scanned))[real], out[0].logits.numpy()[real])


def check_logits(pair, style, ours, theirs):
  codes = range(pair.config.image_token_start, pair.config.image_token_start + pair.config.vision_tokenizer.codes)
  barred = theirs == np.finfo(np.float32).min
  assert set(np.flatnonzero(barred.any(axis=0))) == set(codes) and barred[:, list(codes)].all()
  ours = np.where(np.isin(np.arange(ours.shape[1]), codes), np.finfo(np.float32).min, ours)
  close(f"{style} style, logits", ours[~barred], theirs[~barred], 1e-5)
  np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("lengths", [(17,), LENGTHS], ids=["one", "batch"])
def test_with_a_cache(pair, style, lengths):
  """A prompt, three positions at once, then one by one; ours starts each row at slot 0, theirs pads on the left."""
  transformers = chameleon.reference("transformers")
  ids_BT, real_BT, position_BT = prompts(lengths)
  B, T = ids_BT.shape
  more = np.random.default_rng(1).choice(np.asarray(chameleon.TEXT), (B, 5))
  model, n_B = pair.ours(), np.asarray(lengths)
  rows = np.full((B, T), 1)
  for b, n in enumerate(n_B):
    rows[b, :n] = ids_BT[b, T - n :]
  extend = jax.jit(lambda x, cache, start: model.extend(x, cache, start_B=start))
  cache = Cache.empty(pair.config.transformer, batch=B, slots=T + 5)
  hidden, cache = extend(model.embed_tokens(jnp.asarray(rows)), cache, jnp.zeros(B, jnp.int32))
  past = transformers.DynamicCache(config=pair.theirs.config)
  out = theirs_on(pair, ids_BT, real_BT, position_BT, past_key_values=past, use_cache=True)
  ours = [np.asarray(model.logits(hidden))[np.arange(B), n_B - 1]]
  theirs = [out.logits[:, -1].numpy()]
  for start, stop in ((0, 3), (3, 4), (4, 5)):
    step = more[:, start:stop]
    hidden, cache = extend(model.embed_tokens(jnp.asarray(step)), cache, jnp.asarray(n_B + start))
    seen = np.concatenate([real_BT, np.ones((B, stop), bool)], axis=1)
    position = n_B[:, None] + np.arange(start, stop)
    out = theirs_on(pair, step, seen, position, past_key_values=past, use_cache=True)
    ours += list(np.asarray(model.logits(hidden)).swapaxes(0, 1))
    theirs += list(out.logits.numpy().swapaxes(0, 1))
  legal = np.asarray(theirs[0][0] > np.finfo(np.float32).min)
  for value, expected in zip(ours, theirs, strict=True):
    close(f"{style} style, logits with a cache", value[:, legal], expected[:, legal], 1e-5)


def test_bfloat16(pair, style):
  inputs = prompts(LENGTHS)
  real = inputs[1]
  theirs = theirs_on(pair, *inputs, output_hidden_states=True)
  hidden = theirs.hidden_states[-1].numpy()
  ours = jax.jit(ours_by_layer)(pair.ours("bfloat16"), *inputs)
  assert ours[-1].dtype == jnp.bfloat16
  value = np.asarray(ours[-1].astype(jnp.float32))[real]
  close(f"{style} style, final norm in bf16 (theirs in fp32)", value, hidden[real], 2e-2)
  assert relative_error(value, hidden[real]) > 1e-4, "this isn't bf16"

"""The backbone against `transformers`' Chameleon: same random weights, same inputs, layer by layer."""

import functools

import chameleon
import jax
import jax.numpy as jnp
from measured import close, relative_error
import numpy as np
import pytest

from orthus_jax.models import attention
from orthus_jax.models.cache import Cache

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


@jax.jit
def ours_on(model, ids_BT, real_BT, position_BT) -> tuple[list[jax.Array], jax.Array, jax.Array]:
  """Layer by layer: embeddings, the states after each layer and the final norm; as it is used: states and logits."""
  attend = functools.partial(attention.causal_attention, segment_ids_BT=jnp.asarray(real_BT, jnp.int32))
  theta = model.config.transformer.rope_theta
  rotate = functools.partial(attention.rope, position_BT=jnp.asarray(position_BT), theta=theta)
  states = [model.embed_tokens(jnp.asarray(ids_BT))]
  for l in range(model.config.transformer.layers):
    layer = jax.tree.map(lambda x: x[l], model.transformer.layers)
    states.append(layer(states[-1], rotate, attend))
  scanned = model.transformer(states[0], position_BT=position_BT, segment_ids_BT=real_BT.astype(jnp.int32))
  return [*states, model.transformer.norm(states[-1])], scanned, model.logits(scanned)


@pytest.mark.parametrize("lengths", [(17,), LENGTHS], ids=["one", "batch"])
def test_every_layer(pair, style, lengths):
  inputs = prompts(lengths)
  real = inputs[1]
  out = []
  theirs = chameleon.layer_states(pair.theirs, lambda: out.append(theirs_on(pair, *inputs)))
  ours, scanned, logits = ours_on(pair.ours(), *inputs)
  assert len(theirs) == pair.config.transformer.layers + 1 == len(ours) - 1
  for l, (value, expected) in enumerate(zip(ours, theirs)):
    what = f"layer {l}" if l else "token embedding"
    close(f"{style} style, {what}", np.asarray(value)[real], expected[real], 1e-5)
  hidden = pair.theirs.model.norm(chameleon.reference("torch").from_numpy(theirs[-1])).detach().numpy()
  close(f"{style} style, final norm", np.asarray(ours[-1])[real], hidden[real], 1e-5)
  # The layers that are scanned over are these layers.
  close(f"{style} style, final norm", np.asarray(scanned)[real], hidden[real], 1e-5)
  check_logits(pair, style, np.asarray(logits)[real], out[0].logits.numpy()[real])


def check_logits(pair, style, ours, theirs):
  codes = range(pair.config.image_token_start, pair.config.image_token_start + pair.config.vision_tokenizer.codes)
  barred = theirs == np.finfo(np.float32).min
  assert set(np.flatnonzero(barred.any(axis=0))) == set(codes) and barred[:, list(codes)].all()
  ours = np.where(np.isin(np.arange(ours.shape[1]), codes), np.finfo(np.float32).min, ours)
  close(f"{style} style, logits", ours[~barred], theirs[~barred], 1e-5)
  np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@jax.jit
def extend(model, ids_BT, cache, start_B):
  hidden_BTD, cache = model.transformer.extend(model.embed_tokens(ids_BT), cache, start_B=start_B)
  return model.logits(hidden_BTD), cache


STEPS = ((0, 3), (3, 4), (4, 5))  # after the prompt: three positions at once, then one by one


def theirs_with_a_cache(pair, ids_BT, real_BT, position_BT, more_BN) -> np.ndarray:
  """Logits [B, 1 + N, V] at the end of each prompt and at what follows."""
  past = chameleon.reference("transformers").DynamicCache(config=pair.theirs.config)
  out = theirs_on(pair, ids_BT, real_BT, position_BT, past_key_values=past, use_cache=True)
  logits, n_B1 = [out.logits[:, -1:].numpy()], real_BT.sum(axis=1, keepdims=True)
  for start, stop in STEPS:
    seen = np.concatenate([real_BT, np.ones((len(ids_BT), stop), bool)], axis=1)
    position = n_B1 + np.arange(start, stop)
    out = theirs_on(pair, more_BN[:, start:stop], seen, position, past_key_values=past, use_cache=True)
    logits.append(out.logits.numpy())
  return np.concatenate(logits, axis=1)


def test_with_a_cache(pair, style):
  """Against theirs row by row, and padded on the left; ours starts each row at slot 0 and so pads on the right."""
  ids_BT, real_BT, position_BT = prompts(LENGTHS)
  (B, T), n_B = ids_BT.shape, np.asarray(LENGTHS)
  more_BN = np.random.default_rng(1).choice(np.asarray(chameleon.TEXT), (B, STEPS[-1][1]))
  shifted_BT = np.stack([np.roll(row, n) for row, n in zip(ids_BT, n_B)])
  cache = Cache.empty(pair.config.transformer, batch=B, slots=T + more_BN.shape[1])
  logits, cache = extend(pair.ours(), shifted_BT, cache, np.zeros(B, np.int32))
  ours = [np.asarray(logits)[np.arange(B), n_B - 1][:, None]]
  for start, stop in STEPS:
    logits, cache = extend(pair.ours(), more_BN[:, start:stop], cache, n_B + start)
    ours.append(np.asarray(logits))
  ours_BNV = np.concatenate(ours, axis=1)
  batch_BNV = theirs_with_a_cache(pair, ids_BT, real_BT, position_BT, more_BN)
  legal = batch_BNV[0, 0] > np.finfo(np.float32).min
  close(f"{style} style, logits with a cache", ours_BNV[..., legal], batch_BNV[..., legal], 1e-5)
  for b, n in enumerate(LENGTHS):
    alone = (x[b : b + 1, T - n :] for x in (ids_BT, real_BT, position_BT))
    expected_BNV = theirs_with_a_cache(pair, *alone, more_BN[b : b + 1])
    close(f"{style} style, logits with a cache", ours_BNV[b : b + 1, :, legal], expected_BNV[..., legal], 1e-5)


def test_bfloat16(pair, style):
  ids_BT, real_BT, position_BT = prompts(LENGTHS)
  theirs = theirs_on(pair, ids_BT, real_BT, position_BT, output_hidden_states=True)
  hidden = theirs.hidden_states[-1].numpy()[real_BT]
  model = pair.ours("bfloat16")
  run = jax.jit(lambda model, ids: model.transformer(
      model.embed_tokens(ids), position_BT=position_BT, segment_ids_BT=real_BT.astype(np.int32)
  ))  # fmt: skip
  value_BTD = run(model, ids_BT)
  assert value_BTD.dtype == jnp.bfloat16
  value = np.asarray(value_BTD.astype(jnp.float32))[real_BT]
  close(f"{style} style, final norm in bf16 (theirs in fp32)", value, hidden, 2e-2)
  assert relative_error(value, hidden) > 1e-4, "this isn't bf16"


def test_a_missing_library_is_skipped_but_not_where_parity_is_required(monkeypatch):
  monkeypatch.delenv("ORTHUS_REQUIRE_PARITY", raising=False)
  with pytest.raises(pytest.skip.Exception, match=r"no_such_library isn't installed: pip install -e '.\[test,parity\]'"):
    chameleon.reference("no_such_library")
  monkeypatch.setenv("ORTHUS_REQUIRE_PARITY", "1")
  with pytest.raises(ImportError):
    chameleon.reference("no_such_library")

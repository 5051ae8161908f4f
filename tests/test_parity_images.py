"""Pictures in, against `transformers`' Chameleon: the VQGAN's encoder, its codes, and the backbone on top of them."""

import chameleon
import jax
import jax.numpy as jnp
from measured import close
import numpy as np
import pytest


def pictures(n: int, resolution: int) -> np.ndarray:
  """Values of n random pictures, [n, R, R, 3], with something at every scale."""
  rng = np.random.default_rng(3)
  x = sum(
      jax.image.resize(rng.standard_normal((n, side, side, 3)), (n, resolution, resolution, 3), "linear")
      for side in (2, 4, resolution)
  )
  return np.clip(np.asarray(x, np.float32) / 2, -1, 1)


def encoded_by_theirs(pair, x_BHWC):
  """Their features before quantisation [B, P, C], and their codes [B, P]."""
  torch = chameleon.reference("torch")
  vq = pair.theirs.model.vqmodel
  with torch.no_grad():
    x = torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2).copy())
    z = vq.quant_conv(vq.encoder(x))
    codes = vq.encode(x).image_tokens
  return z.flatten(2).transpose(1, 2).numpy(), codes.view(len(x_BHWC), -1).numpy()


def check_encoder(pair, name: str) -> None:
  v = pair.config.vision_tokenizer
  x = pictures(2, v.resolution)
  features, codes = encoded_by_theirs(pair, x)
  ours = jax.jit(lambda m, x: (z := m.encode(x), m.quantise(z)))(pair.ours().vision_tokenizer, x)
  close(f"{name}, features", ours[0], features, 1e-4)
  np.testing.assert_array_equal(ours[1], codes)
  assert len(np.unique(codes)) > 4, "codes that hardly differ would match by chance"


def test_encoder_and_codes():
  check_encoder(chameleon.pair("7B"), "VQGAN encoder, 2 levels")


@pytest.mark.slow
def test_encoder_of_the_published_structure():
  check_encoder(chameleon.pair("7B", levels=(1, 1, 2, 2, 4), resolution=64), "VQGAN encoder, 5 levels as published")


@pytest.mark.parametrize("style", ["7B", "34B"])
def test_interleaved(style):
  """Two rows of text and pictures, one of them padded on the left; ours reads features, theirs picks their codes."""
  torch = chameleon.reference("torch")
  pair = chameleon.pair(style)
  P = pair.config.vision_tokenizer.patches
  x = pictures(3, pair.config.vision_tokenizer.resolution)
  rng, text = np.random.default_rng(5), np.asarray(chameleon.TEXT)
  image = [chameleon.BOI, *[chameleon.IMAGE] * P, chameleon.EOI]
  two = [0, *image, *rng.choice(text, 4), *image, *rng.choice(text, 3), chameleon.SEP]
  one = [0, *rng.choice(text, 5), *image, chameleon.SEP]
  real_BT = np.asarray([[1] * len(two), [0] * (len(two) - len(one)) + [1] * len(one)])
  ids_BT = np.asarray([two, [1] * (len(two) - len(one)) + one])
  position_BT = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)
  states = chameleon.layer_states(
      pair.theirs,
      lambda: pair.theirs(
          input_ids=torch.from_numpy(ids_BT), attention_mask=torch.from_numpy(real_BT),
          position_ids=torch.from_numpy(position_BT), pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
      ),
  )  # fmt: skip
  with torch.no_grad():
    hidden = pair.theirs.model.norm(torch.from_numpy(states[-1])).numpy()

  def run(model, x):
    z_IPC = model.vision_tokenizer.encode(x)
    features_BJC = jnp.stack([z_IPC[:2].reshape(2 * P, -1), jnp.pad(z_IPC[2], ((0, P), (0, 0)))])
    inputs = dict(features_BJC=features_BJC, slot_BT=slot_BT)
    whole = model(jnp.asarray(ids_BT), position_BT=position_BT, segment_ids_BT=real_BT, **inputs)
    return model.embed(jnp.asarray(ids_BT), **inputs), whole

  is_image = ids_BT == chameleon.IMAGE
  slot_BT = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1)
  embedded, value = jax.jit(run)(pair.ours(), x)
  real = real_BT > 0
  close("embeddings of text and pictures", np.asarray(embedded)[real], states[0][real], 1e-5)
  close(f"{style} style, final norm, with pictures", np.asarray(value)[real], hidden[real], 1e-5)

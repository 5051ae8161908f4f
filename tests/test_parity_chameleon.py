"""A whole Chameleon against `transformers`' own: what goes out is loaded, and predicts and draws the same codes."""

import dataclasses

import chameleon
from converting import convert
import jax.numpy as jnp
from measured import close
import numpy as np
import published
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import document
from orthus_jax.data.sequence import layout
from orthus_jax.interop import names
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import describe

pytestmark = pytest.mark.slow
SIDE = 8  # 4 x 4 patches


def config():
  """A Chameleon of 16 patches a picture, computed in float32."""
  model = published.model_config(resolution=SIDE, latent_dim=16, channel_multipliers=(1, 2), res_blocks=1)
  transformer = dataclasses.replace(model.transformer, layers=3, heads=4, kv_heads=4, head_dim=8, mlp_width=48)
  return dataclasses.replace(model, transformer=transformer)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """The same Chameleon twice: theirs, loaded from our export, and ours, from the directory that was imported."""
  transformers = chameleon.reference("transformers")
  chameleon.reference("torch").set_num_threads(1)
  folder, model = tmp_path_factory.mktemp("parity"), config()
  values = {k: chameleon.draw(k, p.shape) for k, p in names.table(describe(model)[1]).items()}
  values = weights.plain(values, decoder=True)
  weights.write(folder / "published", values, model, torch_dtype="float32")
  processor = folder / "published/preprocessor_config.json"
  processor.write_text(processor.read_text().replace(str(published.RESOLUTION), str(SIDE)))
  convert(f"--from={folder / 'published'}", f"--to={folder / 'native'}", "--image-head=codes")
  convert(f"--from={folder / 'native'}", f"--to={folder / 'out'}")
  theirs, report = transformers.ChameleonForConditionalGeneration.from_pretrained(
      folder / "out", output_loading_info=True, dtype="float32", attn_implementation="eager"
  )
  assert not report["missing_keys"] and not report["mismatched_keys"]
  assert all(k.startswith("model.vqmodel.decoder.") for k in report["unexpected_keys"])
  for key, value in theirs.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), values[key], err_msg=key)
  return theirs.eval(), oj.load(folder / "native")


def pictures(n):
  return [np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for i in range(n)]


def inputs(laid, model):
  """A laid-out prompt as `transformers` is fed it: ids with placeholders, and pixels."""
  torch = chameleon.reference("torch")
  pixels = images_lib.to_model(np.stack([i.pixels for i in laid.images]), model.config.model.vision_tokenizer.pixels)
  pixels = torch.from_numpy(np.array(pixels).transpose(0, 3, 1, 2))
  ids = np.where(laid.image_T >= 0, model.tokenizer.image, laid.tokens_T)
  return torch.from_numpy(ids.astype(np.int64))[None], pixels


def test_logits_of_all_tokens_on_interleaved_input(pair):
  """Of text and of image codes: theirs are taken from the states, as its own `forward` overwrites those of codes."""
  theirs, model = pair
  torch = chameleon.reference("torch")
  a, b = pictures(2)
  laid = layout(document("Compare", a, "with", b, "a red house"), model.tokenizer, patches=16)
  ids, pixels = inputs(laid, model)
  with torch.no_grad():
    expected = theirs.lm_head(theirs.model(input_ids=ids, pixel_values=pixels).last_hidden_state)[0].numpy()
    masked = theirs(input_ids=ids, pixel_values=pixels).logits[0].numpy()
  net, slot = params_lib.merge(model.graphdef, model.params), np.full((1, len(laid)), -1)
  slot[0, laid.image_T >= 0] = np.arange(32)
  features = model.encode([i.pixels for i in laid.images]).reshape(1, 32, -1)
  n = len(laid)
  hidden = net(
      jnp.asarray(laid.tokens_T)[None], features_BJC=features, slot_BT=slot, position_BT=np.arange(n)[None],
      segment_ids_BT=np.ones((1, n), int),
  )[0]  # fmt: skip
  ours = np.asarray(net.logits(hidden))
  close("Chameleon, logits of all tokens, interleaved", ours, expected, 1e-5)
  np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))
  codes = slice(model.config.model.image_token_start, model.config.model.image_token_start + published.CODES)
  close("Chameleon, logits of codes, interleaved", np.asarray(net.code_logits(hidden)), expected[:, codes], 1e-5)
  assert (masked[:, codes] == np.finfo(np.float32).min).all()


def drawn_by_theirs(theirs, model, prompt, allowed):
  """The likeliest codes one after the other by a plain loop that computes every row anew."""
  torch = chameleon.reference("torch")
  ids, pixels = inputs(prompt, model) if prompt.images else (torch.from_numpy(prompt.tokens_T.astype(np.int64))[None], None)
  ids = torch.cat([ids, torch.tensor([[model.tokenizer.boi]])], dim=1)
  codes = []
  with torch.no_grad():
    for _ in range(16):
      state = theirs.model(input_ids=ids, pixel_values=pixels).last_hidden_state[:, -1]
      code = int(theirs.lm_head(state)[0, allowed].argmax())
      codes.append(code)
      ids = torch.cat([ids, torch.tensor([[allowed[code]]])], dim=1)
  return codes


def test_the_likeliest_codes_are_drawn(pair):
  theirs, model = pair
  a, b, c = pictures(3)
  prompts = [document("a red house by the sea"), document(a, "What is in this picture?"), document("Compare", b, c, "a house")]
  start = model.config.model.image_token_start
  allowed = list(range(start, start + published.CODES))
  codes = [drawn_by_theirs(theirs, model, layout(d, model.tokenizer, patches=16, respond=True), allowed) for d in prompts]
  assert len({c for row in codes for c in row}) > 8
  sampling = dataclasses.replace(model.config.sampling, image_temperature=0.0, guidance=1.0, image_guidance=1.0)
  drawn = model.generate(prompts, respond="image", sampling=sampling)
  codebook = np.asarray(model.params["vision_tokenizer/codebook"])
  expected = model.decode([codebook[row] for row in codes]).astype(int)
  for i, d in enumerate(drawn):
    assert np.abs(d.images[-1].pixels.astype(int) - expected[i]).max() <= 1  # rounding
  assert all(np.abs(expected[i] - expected[i - 1]).max() > 1 for i in range(3))

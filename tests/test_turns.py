"""Several questions of one picture in one sequence, each answered as if it were the only one."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax.data.batch import empty_batch, fill_row
from orthus_jax.data.documents import Image, Text, document
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.sequence import layout, turns
from orthus_jax.errors import BadRequest
from orthus_jax.models import attention
from orthus_jax.models.orthus import Orthus

TK = tiny.tokenizer()
P = 16
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8)
ASKED = (("what is this", "red"), ("is this a box", "one two"), ("what", "a blue box"))
CONFIG = tiny.config(data__turns="separate", data__sequence_length=128)


def asked(*questions, pixels=PIXELS):
  segments = [Image(pixels)]
  for question, answer in questions:
    segments += [Text(question), Text(answer, True)]
  return document(*segments)


def batch(config, *documents):
  out = empty_batch(config, 1, pad=TK.pad, image_shape=(8, 8, 3), dtype=np.uint8)
  laid = [layout(d, TK, patches=P) for d in documents]
  fill_row(out, 0, [(s, [i.pixels for i in s.images]) for s in laid], patches=P, power=0.0)
  return out


def test_turns_are_counted_after_what_they_share():
  s = layout(asked(*ASKED), TK, patches=P)
  turn_T = turns(s, patches=P)
  assert (turn_T[: P + 3] == 0).all() and turn_T.max() == 3 and (np.diff(turn_T) >= 0).all()
  for n, (question, answer) in enumerate(ASKED, start=1):
    ids = s.tokens_T[turn_T == n].tolist()
    assert ids == [*TK.encode(question), TK.sep, *TK.encode(answer), TK.sep]
  alone = layout(asked(ASKED[0]), TK, patches=P)
  drawn = layout(document(PIXELS, "what", "red", "draw", PIXELS, learn=[2, 4]), TK, patches=P)
  further = layout(document(PIXELS, "what", "red", PIXELS, "is", "blue", learn=[2, 5]), TK, patches=P)
  words = layout(document("what", "red", "is", "blue", learn=[1, 3]), TK, patches=P)
  for one in (alone, drawn, further, words):
    assert not turns(one, patches=P).any()


@pytest.mark.slow
def test_each_turn_is_answered_as_if_it_stood_alone():
  model = Orthus(CONFIG.model, rngs=nnx.Rngs(params=1))

  @jax.jit
  def states(b):
    features = model.vision_tokenizer.encode(jnp.asarray(b.images[0], jnp.float32) / 128 - 1)
    return model(
        b.tokens_BT, features_BJC=features.reshape(1, -1, features.shape[-1]), slot_BT=b.slot_BT,
        position_BT=b.position_BT, segment_ids_BT=b.segment_ids_BT, shared_ids_BT=b.shared_ids_BT,
    )[0]  # fmt: skip

  row = batch(CONFIG, asked(*ASKED), asked(ASKED[1]))
  together, at = np.asarray(states(row)), P + 3
  end = int((row.segment_ids_BT == 5).argmax())  # where the second document begins
  for question, answer in ASKED:
    single = batch(CONFIG, asked((question, answer)))
    n = len(TK.encode(question)) + len(TK.encode(answer)) + 2
    expected = np.asarray(states(single))[P + 3 : P + 3 + n]
    np.testing.assert_allclose(together[at : at + n], expected, atol=2e-5)
    np.testing.assert_array_equal(row.position_BT[0, at : at + n], np.arange(P + 3, P + 3 + n))
    np.testing.assert_array_equal(row.text_weight_BT[0, at : at + n], single.text_weight_BT[0, P + 3 : P + 3 + n])
    at += n
  assert at == end
  # In a conversation, a later answer does depend on what was said before.
  plain = states(batch(tiny.config(data__sequence_length=128), asked(*ASKED)))
  assert np.abs(np.asarray(plain)[at - 3] - together[at - 3]).max() > 1e-3
  # The other document of the row is as it is alone, too.
  alone = np.asarray(states(batch(CONFIG, asked(ASKED[1]))))
  np.testing.assert_allclose(together[end : end + 20], alone[:20], atol=2e-5)


def test_batches_carry_a_shared_segment_only_where_asked_for():
  config = tiny.config(data__turns="separate", data__sequence_length=128)
  separate = Pipeline(tiny.TinySource(), TK, config).batch(0)
  plain = Pipeline(tiny.TinySource(), TK, tiny.config(data__sequence_length=128)).batch(0)
  assert plain.shared_ids_BT is None
  np.testing.assert_array_equal(separate.tokens_BT, plain.tokens_BT)
  np.testing.assert_array_equal(separate.shared_ids_BT > 0, plain.segment_ids_BT > 0)
  assert (separate.segment_ids_BT != separate.shared_ids_BT).any()


def test_kernels_without_a_mask_refuse():
  q = jnp.zeros((1, 128, 1, 128))
  ids = jnp.ones((1, 128), jnp.int32)
  with pytest.raises(BadRequest, match="data.turns=sequence"):
    attention.causal_attention(q, q, q, segment_ids_BT=ids, shared_ids_BT=ids, backend="splash")

"""Documents to sequences to packed rows."""

import dataclasses

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data import packing
from orthus_jax.data.documents import Document, Image, Text, document
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.sequence import layout, unconditional
from orthus_jax.errors import BadRequest

TK = tiny.tokenizer()
PIXELS = np.zeros((8, 8, 3), np.uint8)
P = 16


def spell(s) -> list[str]:
  names = {TK.bos: "<s>", TK.sep: "SEP", TK.boi: "BOI", TK.eoi: "EOI", TK.image: "*"}
  return [names.get(int(t)) or TK.decode([int(t)]) for t in s.tokens_T]


def test_layout_of_a_drawing():
  s = layout(document("red box", PIXELS, learn=[1]), TK, patches=2)
  assert spell(s) == ["<s>", "red", " box", "SEP", "BOI", "*", "*", "EOI", "SEP"]
  # Learnt by the LM head: the begin and the end of the image and the closing separator; patches are the image head's.
  assert [t for t, learnt in zip(spell(s), s.learn_T) if learnt] == ["BOI", "EOI", "SEP"]
  assert s.learn_I.tolist() == [True] and s.starts_I.tolist() == [4]
  assert s.image_T.tolist() == [-1, -1, -1, -1, -1, 0, 0, -1, -1]


def test_layout_of_a_conversation():
  d = document(PIXELS, "what", "red", "is", "blue", learn=[2, 4])
  s = layout(d, TK, patches=1)
  assert spell(s) == ["<s>", "BOI", "*", "EOI", "what", "SEP", "red", "SEP", "is", "SEP", "blue", "SEP"]
  learnt = [i for i, l in enumerate(s.learn_T) if l]
  assert learnt == [6, 7, 10, 11]  # answers and the separators that end them, not those that end questions


def test_segments_know_their_lengths():
  s = layout(document(PIXELS, "what", "red box", "is", "blue", PIXELS, learn=[2, 4, 5]), TK, patches=3)
  learnt = {name: n for name, n in zip(spell(s), s.learnt_length_T.tolist()) if n}
  # With the separator that ends an answer, and an image's patches and markers.
  assert learnt == {"red": 3, " box": 3, "blue": 1, "BOI": 6, "EOI": 6, "SEP": 6}
  assert s.learnt_length_T[spell(s).index(" box") + 1] == 3


@pytest.mark.parametrize("power", (0.0, 0.5, 1.0))
def test_tokens_weigh_by_the_length_of_their_segment(power):
  p = pipeline(data__caption_dropout=0.0, data__text_length_power=power)
  source = tiny.TinySource()
  lengths = {source[i].id: layout(source[i], TK, patches=P).learnt_length_T for i in range(40)}
  batch, ids = p.batch(0), iter(p.document_ids(0))
  for b in range(8):
    for segment in range(1, batch.segment_ids_BT[b].max() + 1):
      length = lengths[next(ids)][1:].astype(float)
      wanted = np.where(length > 0, np.maximum(length, 1) ** -power, 0)
      at = np.flatnonzero(batch.segment_ids_BT[b] == segment)[:-1]
      np.testing.assert_allclose(batch.text_weight_BT[b, at], wanted, rtol=1e-6)


def test_a_prompt_is_a_prefix_of_its_training_sequence():
  for i in range(8):
    d = tiny.TinySource()[i]
    whole, prompt = layout(d, TK, patches=P), layout(d.prompt(), TK, patches=P, respond=True)
    np.testing.assert_array_equal(prompt.tokens_T, whole.tokens_T[: len(prompt)])


def test_empty_documents_and_texts_are_refused():
  with pytest.raises(BadRequest, match="is empty"):
    layout(Document(()), TK, patches=P)
  with pytest.raises(BadRequest, match="empty text"):
    layout(document("  ", PIXELS, learn=[1]), TK, patches=P)
  with pytest.raises(BadRequest, match="empty text"):
    layout(document(PIXELS, "  ", learn=[1]), TK, patches=P)
  with pytest.raises(BadRequest, match="empty text"):
    layout(document(PIXELS, ""), TK, patches=P)
  with pytest.raises(BadRequest, match="empty text"):
    layout(document("  "), TK, patches=P)


def test_spaces_around_given_pictures_are_kept():
  spaced = layout(document(PIXELS, "  ", PIXELS, "what"), TK, patches=P)
  plain = layout(document(PIXELS, PIXELS, "what"), TK, patches=P)
  assert len(spaced) == len(plain) + len(TK.encode("  "))


def test_unconditional_prompt():
  d = document(PIXELS, "draw a blue box", PIXELS, learn=[2])
  assert [type(s) for s in unconditional(d, "x").segments] == [Text, Image]
  kept = unconditional(d, "x", keep_images=True)
  assert [type(s) for s in kept.segments] == [Image, Text, Image] and kept.texts[0].text == "x"


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=150).map(
    lambda rows: np.asarray([(n, i, min(i, l)) for n, i, l in rows])
)


@given(sizes, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_packing_places_every_document_once_and_within_capacity(sizes, seed):
  capacity = packing.Capacity(20, 4, 3)
  order = np.random.default_rng(seed).permutation(len(sizes))
  rows = packing.pack(sizes, order, capacity)
  assert sorted(d for row in rows for d in row) == list(range(len(sizes)))
  for row in rows:
    assert (sizes[row].sum(axis=0) <= capacity.vector()).all()


def test_packing_wastes_little():
  rng = np.random.default_rng(0)
  sizes = np.stack([rng.integers(20, 110, 2000), np.ones(2000, int), np.ones(2000, int)], axis=1)
  rows = packing.pack(sizes, np.arange(2000), packing.Capacity(256, 16, 16))
  assert sizes[:, 0].sum() / (256 * len(rows)) > 0.97


def pipeline(**changes) -> Pipeline:
  return Pipeline(tiny.TinySource(), TK, tiny.config(**changes))


def test_batches_are_a_function_of_seed_and_step():
  a, b = pipeline(), pipeline()
  later = b.batch(7)
  for step in (0, 7, 3):  # any order, any history
    jax.tree.map(np.testing.assert_array_equal, a.batch(step), b.batch(step) if step != 7 else later)
  assert a.document_ids(0) != pipeline(run__seed=1).document_ids(0)


def test_an_epoch_shows_every_document_once():
  p = pipeline(data__caption_dropout=0.0)
  rows = [row for step in range(25) for row in p.plan.batch(step)]
  for number in (0, 1):
    assert sorted(d for epoch, row in rows if epoch == number for d in row) == list(range(40))


def test_later_kinds_take_over_at_their_step():
  p = pipeline(data__kinds=[["ask", 1.0], ["draw", 0.0]], data__later_kinds=[[3, [["draw", 1.0], ["ask", 0.5]]], [5, []]])
  by_id = {d.id: d.kind for d in p._documents}
  kinds = [{by_id[i] for i in p.document_ids(step)} for step in range(12)]
  assert kinds[:3] == [{"ask"}] * 3
  assert set.union(*kinds[3:5]) == {"ask", "draw"}
  assert set.union(*kinds[5:]) == {"ask", "draw", "edit", "story"}
  # A stage starts at its beginning, in an order of its own, and needs no history.
  again = pipeline(data__kinds=[["ask", 1.0]], data__later_kinds=[[3, [["ask", 1.0]]]])
  assert again.document_ids(3) != again.document_ids(0)
  assert min(epoch for epoch, _ in again.plan.batch(3)) == packing.EPOCHS_A_STAGE
  assert again.plan.batch(3) == again.plan._stages[1][1].batch(0)
  assert again.document_ids(4) == pipeline(data__kinds=[["ask", 1.0]], data__later_kinds=[[3, [["ask", 1.0]]]]).document_ids(4)
  for wrong in ([[0, []]], [[4, []], [4, []]]):
    with pytest.raises(BadRequest, match="later_kinds: steps must be above 0 and rise"):
      pipeline(data__later_kinds=wrong)
  with pytest.raises(BadRequest, match="data.kinds or later_kinds has 'ask' twice"):
    pipeline(data__later_kinds=[[4, [["ask", 1.0], ["draw", 1.0], ["ask", 0.0]]]])
  with pytest.raises(BadRequest, match="'drawing'; this source has"):
    pipeline(data__later_kinds=[[4, [["drawing", 1.0]]]])


def test_rows_hold_their_documents():
  p = pipeline(data__caption_dropout=0.0)
  batch = p.batch(0)
  tiny.check_rows(batch, p.document_ids(0), TK, patches=P)
  assert (batch.segment_ids_BT == 0).mean() < 0.5


def test_captions_are_dropped_at_their_rate():
  p = pipeline(data__caption_dropout=0.5)
  dropped = asked = 0
  prompt = TK.encode("generate an image")
  for epoch in range(40):
    for d, v in zip(p._documents, p._variants(epoch)):
      if d.kind in ("draw", "edit"):
        asked += 1
        dropped += v > 0
        tokens = d.variants[v].tokens_T.tolist()
        assert (v > 0) == any(tokens[i : i + len(prompt)] == prompt for i in range(len(tokens)))
      else:
        assert v == 0  # a question or a story is never robbed of its prompt
  assert 0.4 < dropped / asked < 0.6


def test_kinds_are_weighted_and_unknown_ones_refused():
  p = pipeline(data__kinds=[["draw", 1.0], ["ask", 0.25]])
  drawn = [i for step in range(20) for i in p.document_ids(step)]
  kinds = [p._documents[[d.id for d in p._documents].index(i)].kind for i in drawn]
  assert set(kinds) == {"draw", "ask"} and 2.5 < kinds.count("draw") / kinds.count("ask") < 6
  with pytest.raises(BadRequest, match="'drawing'; this source has ask, draw, edit, story"):
    pipeline(data__kinds=[["drawing", 1.0]])


def test_documents_too_long_are_named():
  p = pipeline(data__sequence_length=30)
  assert p.too_long and all(i.startswith("tiny-") for i in p.too_long)
  long = Document((Text("red " * 80, True),), id="long")
  with pytest.raises(BadRequest, match="none of the 1 documents fits a row of 64 positions"):
    Pipeline([long], TK, tiny.config())


def test_images_are_checked():
  with pytest.raises(BadRequest, match="uint8"):
    Image(np.zeros((4, 4, 3)))
  with pytest.raises(BadRequest, match="no pixels"):
    Image(np.zeros((0, 4, 3), np.uint8))
  assert dataclasses.replace(Image(PIXELS), learn=True) != Image(PIXELS)

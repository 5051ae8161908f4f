import collections
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from orthus_jax.data.shapes import brief, changes, corpus, language, questions, world
from orthus_jax.data.shapes.world import Thing
from orthus_jax.errors import BadRequest

seeds = st.integers(0, 2**32)
ALL_TAGS = language.TAGS + (language.DESCRIPTION,)


@hypothesis.given(seeds, st.sampled_from(ALL_TAGS))
def test_captions_parse_to_what_they_promise(seed, tag):
  rng = np.random.default_rng(seed)
  scene = language.sample_for(rng, tag)
  text, metadata = language.caption(rng, scene, tag)
  assert metadata["tag"] == tag and metadata["prompt"] == text == text.lower()
  assert language.parse_caption(text) == metadata["include"]
  assert language.parse_caption(text.upper() + ".") == metadata["include"]
  if tag == "counting":
    n = len(scene.things)
    assert metadata["include"][0]["count"] == n
    assert metadata["exclude"] == [{"class": scene.things[0].shape, "count": n + 1}]
  if tag == language.DESCRIPTION:
    assert set(language.parse_things(text)) == set(scene.things)


def test_captions_by_hand():
  assert language.parse_caption("A picture of a circle to the left of a square") == [
      {"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}]
  assert language.parse_caption("at the top left there is a red cross") == [
      {"class": "cross", "count": 1, "color": "red", "place": "top left"}]
  assert language.parse_caption("there are three black crosses") == [{"class": "cross", "count": 3, "color": "black"}]
  for text in ("", "a red", "a pink circle", "circle", "a circle and", "a circle at the top leftish", "five circles"):
    assert language.parse_caption(text) is None
  assert language.parse_things("a red circle at the top") is None  # no size
  assert language.parse_things("a small red circle at the top and a small red square at the top") is None
  things = language.parse_things("a small red circle at the top and a large blue square at the top left")
  assert language.outline(things) == "top left large blue square and top small red circle"
  assert language.parse_outline(language.outline(things)) == things[::-1]
  for text in ("top small red circle and top small red square", "top red circle", "a small red circle at the top", ""):
    assert language.parse_outline(text) is None
  with pytest.raises(BadRequest, match="nonsense"):
    language.sample_for(np.random.default_rng(0), "nonsense")


def test_every_tag_has_several_phrasings():
  rng = np.random.default_rng(0)
  for tag in ALL_TAGS:
    scene = language.sample_for(rng, tag)
    assert len({language.caption(rng, scene, tag)[0] for _ in range(60)}) >= 3


# --- questions ------------------------------------------------------------------------------------------------------


def _those(things, words):
  """The things that words such as "red circle" or "thing at the top" are about."""
  head, _, place = words.partition(" at the ")
  found = [t for t in things if not place or t.place == place]
  for word in head.split():
    word = re.sub("(?<=cross)es$|(?<!cros)s$", "", word)
    if word != "thing":
      found = [t for t in found if word in (t.color, t.shape)]
  return found


def _answer(things, question):
  """Answers a question from its words, independently of how it was made."""
  question = question.rstrip("?")
  if m := re.fullmatch("how many (.*) (?:are there|do you see)", question):
    return language.NUMBERS[len(_those(things, m[1]))]
  if m := re.fullmatch("(?:are there|is there|do you see) (one|two|three|four) (.*)", question):
    return language.NUMBERS[len(_those(things, m[2]))] == m[1]
  if m := re.fullmatch("(?:is there|do you see) a (.*)", question):
    return bool(_those(things, m[1]))
  if m := re.fullmatch("(?:what|which) (color|shape) is the (.*)", question):
    (thing,) = _those(things, m[2])
    return getattr(thing, m[1])
  if m := re.fullmatch("where is the (.*)", question):
    (thing,) = _those(things, m[1])
    return thing.place
  if m := re.fullmatch("is the (.*) (left of|right of|above|below) the (.*)", question):
    (a,), (b,) = _those(things, m[1]), _those(things, m[3])
    return world.relation(a, b) == m[2]
  if m := re.fullmatch(f"is the (.*?) at the ({'|'.join(sorted(world.PLACES, key=len)[::-1])})", question):
    (thing,) = _those(things, m[1])
    return thing.place == m[2]
  m = re.fullmatch(r"is the (.*?) (?:a )?(\w+)", question)
  (thing,) = _those(things, m[1])
  assert m[2] in world.COLORS + world.SHAPES
  return m[2] in (thing.color, thing.shape)


@hypothesis.settings(max_examples=300)
@hypothesis.given(seeds, st.booleans(), st.booleans())
def test_answers_are_right(seed, paired, simple):
  rng = np.random.default_rng(seed)
  subject = questions.sample(rng, simple=simple)
  records = questions.ask(rng, subject, paired=paired)
  assert 6 <= len(records) <= (8 if paired else 10)
  pairs = collections.defaultdict(list)
  for record in records:
    answer = _answer(subject.scene.things, record["question"])
    assert record["answer"] == {True: "yes", False: "no"}.get(answer, answer)
    assert record["form"] == ("yes_no" if isinstance(answer, bool) else "open")
    assert record["type"] in questions.TYPES and len(record["answer"].split()) <= 2
    if record["pair"] is not None:
      pairs[record["pair"]].append(record)
  assert len(pairs) == (3 if paired else 0)
  for a, b in pairs.values():
    assert {a["answer"], b["answer"]} == {"yes", "no"} and a["type"] == b["type"]


@pytest.mark.slow
@pytest.mark.parametrize("paired", (False, True))
def test_words_do_not_give_answers_away(paired):
  rng = np.random.default_rng(1)
  yes, asked, types = collections.Counter(), collections.Counter(), collections.Counter()
  for _ in range(5000):
    for i, record in enumerate(questions.ask(rng, questions.sample(rng), paired=paired)):
      types[record["type"], record["form"]] += 1
      if record["form"] == "yes_no":
        # Whole questions, their words, their types and their places in the row.
        for key in {record["question"], record["type"] + " type", str(i), *record["question"].split()}:
          asked[key] += 1
          yes[key] += record["answer"] == "yes"
  sigmas = {key: abs(yes[key] - n / 2) / (n / 4) ** 0.5 for key, n in asked.items() if n >= 30}
  assert len(sigmas) > 100 and max(sigmas.values()) < 4.5, max(sigmas.items(), key=lambda kv: kv[1])
  assert len(types) == 9 and min(types.values()) > 300


def test_simple_scenes_have_few_things():
  rng = np.random.default_rng(0)
  things = collections.Counter(len(questions.sample(rng, simple=True).scene.things) for _ in range(500))
  assert set(things) == {1, 2, 3} and things[2] > max(things[1], things[3])


@hypothesis.settings(max_examples=200)
@hypothesis.given(seeds, st.booleans())
def test_brief_answers_are_right(seed, simple):
  rng = np.random.default_rng(seed)
  scene = questions.sample(rng, simple=simple).scene
  records = brief.ask(rng, scene)
  assert 1 <= len(records) <= brief.MOST and len({r["question"] for r in records}) == len(records)
  for record in records:
    words = record["question"].removeprefix("where is the ").removesuffix("?").removesuffix(" thing")
    seen = [t for t in scene.things if words in (t.shape, t.color, t.place, f"{t.color} {t.shape}")]
    if record["type"] == "count":
      of = {**{many: one for one, many in language.PLURALS.items()}, **{f"{c} things": c for c in world.COLORS}}
      alike = [t for t in scene.things if of[record["question"]] in (t.shape, t.color)]
      assert record["answer"] == language.NUMBERS[len(alike)] and record["form"] == "open"
    elif record["answer"] == "no":
      assert not seen and record["form"] == "yes_no"
    elif record["answer"] == "yes":
      assert seen and record["form"] == "yes_no"
    else:
      (thing,) = seen
      said = {thing.shape: thing.color, thing.color: thing.shape, thing.place: f"{thing.color} {thing.shape}"}
      assert record["answer"] == (thing.place if record["question"].startswith("where") else said[words])
      assert record["form"] == "open"


def test_brief_yes_and_no_are_even():
  rng = np.random.default_rng(0)
  asked = [r for _ in range(2000) for r in brief.ask(rng, questions.sample(rng).scene)]
  pairs = collections.Counter(r["answer"] for r in asked if r["question"].split()[-1] in world.SHAPES and " " in r["question"])
  assert 0.9 < pairs["yes"] / pairs["no"] < 1.12


# --- changes --------------------------------------------------------------------------------------------------------


@hypothesis.given(seeds, st.sampled_from(world.SPLITS))
@hypothesis.settings(max_examples=60, deadline=None)
def test_edits_say_what_they_do_and_stay_in_their_split(seed, split):
  edit = changes.sample_edit(np.random.default_rng(seed), split)
  assert world.split_of(edit.source) == world.split_of(edit.target) == split
  assert edit.source.things != edit.target.things
  after = changes.apply_sentence(edit.source.things, edit.instruction)
  assert after is not None and set(after) == set(edit.target.things)


@hypothesis.given(seeds, st.sampled_from(world.SPLITS))
@hypothesis.settings(max_examples=60, deadline=None)
def test_stories_can_be_followed_from_their_sentences(seed, split):
  story = changes.sample_story(np.random.default_rng(seed), split)
  assert 3 <= len(story.sentences) == len(story.scenes) <= 5
  things = ()
  for sentence, scene in zip(story.sentences, story.scenes):
    assert world.split_of(scene) == split and len(scene.things) <= 2
    before, things = things, changes.apply_sentence(things, sentence)
    assert things is not None and set(things) == set(scene.things)
    if before:
      assert 1 <= len(set(before) ^ set(things)) <= 2
  for thing in story.scenes[0].things:
    assert f"a {thing.color} {thing.shape}" in story.prompt


@pytest.mark.parametrize("split", ("train", "test"))
def test_all_changes_occur(split):
  rng = np.random.default_rng(0)
  edits = collections.Counter(changes.sample_edit(rng, split).change.operation for _ in range(60))
  assert set(edits) == set(changes.OPERATIONS)


CIRCLE, SQUARE = Thing("circle", "red", "small", "left"), Thing("square", "red", "large", "top")


@pytest.mark.parametrize("text, after", (
    ("The circle turns blue.", (Thing("circle", "blue", "small", "left"), SQUARE)),
    ("the large thing turns blue", None),
    ("the triangle turns blue", None),
    ("it turns blue", None),  # which of the two?
    ("the circle grows", (Thing("circle", "red", "large", "left"), SQUARE)),
    ("the circle moves to the top", None),  # taken
    ("the red square at the top leaves", (CIRCLE,)),
    ("a small green cross appears at the bottom", (CIRCLE, SQUARE, Thing("cross", "green", "small", "bottom"))),
    ("a green cross appears at the bottom", None),
    ("put the circle at the bottom right", (Thing("circle", "red", "small", "bottom right"), SQUARE)),
    ("they lived happily", None),
))
def test_sentences_by_hand(text, after):
  assert changes.apply_sentence((CIRCLE, SQUARE), text) == after


def test_it_is_the_only_thing():
  assert changes.apply_sentence((CIRCLE,), "it becomes a cross") == (Thing("cross", "red", "small", "left"),)
  assert changes.apply_sentence((), "we see a small red circle at the left") == (CIRCLE,)
  assert changes.apply_sentence((), "it becomes a cross") is None


def test_corpus_is_short_regular_and_the_same_again():
  texts = list(corpus.texts(scenes=150))
  assert texts == list(corpus.texts(scenes=150)) != list(corpus.texts(seed=1, scenes=150))
  assert max(len(t.split()) for t in texts) < 45
  words = collections.Counter(w for t in texts for w in t.split())
  assert {*world.COLORS, *world.SHAPES, "yes", "three", "tell", "describe", "remove", "turns"} <= words.keys()
  assert len(words) < 150

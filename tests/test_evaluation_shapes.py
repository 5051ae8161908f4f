import types

import numpy as np
import pytest

from orthus_jax.config import SamplingConfig
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.shapes import detector, language, records
from orthus_jax.data.shapes.drawing import render
from orthus_jax.data.shapes.world import Scene, Thing
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes, shapes_judge, shapes_table
from orthus_jax.evaluation.results import Case, summarize

COUNTS = {"caption_to_image": 24, "image_to_caption": 6, "question": 6, "edit": 8, "story": 3}


@pytest.fixture(scope="module")
def documents():
  return [records.make_document(kind, "test", i) for kind, n in COUNTS.items() for i in range(n)]


class Oracle:
  """Answers as the documents themselves do, or as `change` makes of that; needs no model."""

  def __init__(self, documents, change=None):
    self.config = types.SimpleNamespace(sampling=SamplingConfig(max_new_tokens=160))
    self._change = change or (lambda prompt, response: response)
    self._by_id = {}
    for d in documents:
      self._by_id[d.id] = d.response().segments
      for i, q in enumerate(d.meta.get("questions", ())):
        self._by_id[f"{d.id}/{i}"] = (Text(q["answer"], True),)
    self.calls = []

  def generate(self, documents, *, respond="auto", sampling=None, seeds=None, max_images=None, batch_size=64,
               progress=None):
    assert len(seeds) == len(documents) and all(0 <= s < 2**31 for s in seeds)
    assert not any(s.learn for d in documents for s in d.segments)
    self.calls.append((respond, [d.id for d in documents], list(seeds), sampling))
    if progress:
      progress(len(documents), len(documents))
    return [Document((*d.segments, *self._change(d, self._by_id[d.id])), id=d.id) for d in documents]


def score(documents, change=None, **options):
  options.setdefault("limits", shapes.Limits(samples=1))
  return shapes.evaluate(Oracle(documents, change), documents, **options)


@pytest.fixture(scope="module")
def perfect(documents):
  return score(documents)


def test_an_oracle_scores_one_everywhere(documents, perfect):
  assert {n: v for n, v in perfect.scores.items() if v != 1.0} == {}
  assert set(language.TAGS) | {"geneval_overall", "open_accuracy", "open_accuracy_all", "yes_no_accuracy",
                               "pair_accuracy", "captions", "edits", "edits_exact", "kept", "story_turns",
                               "story_pictures", "story_length_ok"} <= set(perfect.scores)
  assert all(case.right and not case.reason for case in perfect.cases)
  assert perfect.counts["single_object"] == 4 and perfect.counts["geneval_overall"] == 24
  assert perfect.counts["yes_no_accuracy"] == 36 and perfect.counts["pair_accuracy"] == 18
  assert len(perfect.cases) == 24 + 6 + 8 + 3 + sum(len(d.meta.get("questions", ())) for d in documents)


def test_baselines_are_those_of_trivial_models(perfect):
  base = perfect.baselines
  assert base["yes_no_accuracy"] == 0.5 and base["pair_accuracy"] == 0.0
  assert base["edits"] == 0.0 and base["kept"] == 1.0
  for name in (*language.TAGS, "geneval_overall", "captions"):
    assert base[name] < 0.5, name
  answers = [c.expected for c in perfect.cases if c.kind == "question" and c.tag == "color" and "open_color" in c.marks]
  assert base["open_color"] == max(answers.count(a) for a in answers) / len(answers)


def test_always_yes_gets_half_and_no_pair(documents):
  result = score(documents, lambda d, response: (Text("Yes, it is.", True),) if d.kind == "question" else response)
  assert result.scores["yes_no_accuracy"] == 0.5 and result.scores["pair_accuracy"] == 0.0
  assert result.scores["open_accuracy"] == 0.0


def test_a_shuffled_model_scores_as_the_shuffled_baseline(documents):
  many = [records.make_document("caption_to_image", "test", i) for i in range(240)]
  pictures = [d.images[0] for d in many]
  rng = np.random.default_rng(5)
  result = score(many, lambda d, response: (pictures[rng.integers(len(pictures))],))
  assert abs(result.scores["geneval_overall"] - result.baselines["geneval_overall"]) < 0.08
  low, high = result.intervals["geneval_overall"]
  assert low < result.baselines["geneval_overall"] < high


def test_untouched_pictures_are_no_edits(documents):
  result = score(documents, lambda d, response: (d.images[0],) if d.kind == "edit" else response)
  assert result.scores["edits"] == 0.0 and result.scores["kept"] == 1.0
  assert {c.reason for c in result.cases if c.kind == "edit"} == {"left as it was"}


def test_samples_have_their_own_seeds_and_limits_change_none(documents):
  model = Oracle(documents)
  pictures = shapes.Limits(samples=4, questions=0, stories=0, edits=0, captions=0)
  result = shapes.evaluate(model, documents, limits=pictures)
  respond, ids, seeds, _ = model.calls[0]
  assert respond == "image" and len(ids) == 96 == len(set(seeds)) and result.counts["single_object"] == 16
  assert result.counts["geneval_prompts"] == 24
  few = Oracle(documents)
  shapes.evaluate(few, documents, limits=shapes.Limits(caption_images=1, samples=2, questions=1, stories=0, edits=2))
  sizes = {respond: len(ids) for respond, ids, *_ in few.calls}
  assert len(few.calls[0][1]) == 12 and sizes["image"] == 2 and "auto" not in sizes
  assert set(zip(*few.calls[0][1:3])) <= set(zip(ids, seeds))
  other = Oracle(documents)
  shapes.evaluate(other, documents, seed=1, limits=shapes.Limits(caption_images=1, samples=2))
  assert not set(other.calls[0][2]) & set(few.calls[0][2])


def test_one_wrong_prompt_in_four_shows_in_score_interval_and_any(documents):
  first = {}

  def change(d, response):
    if d.kind == "caption_to_image":
      first[d.id] = first.get(d.id, 0) + 1
      if first[d.id] == 1:
        return (Image(np.full((32, 32, 3), 250, np.uint8), True),)
    return response

  result = score(documents, change, limits=shapes.Limits(samples=4))
  assert result.scores["geneval_overall"] == 0.75 and result.scores["geneval_prompts"] == 1.0
  assert result.intervals["geneval_overall"] == (0.75, 0.75)  # prompts are resampled, not pictures


def test_progress_counts_all_responses(documents):
  seen = []
  result = score(documents, progress=lambda done, total: seen.append((done, total)))
  assert seen[-1] == (len(result.cases),) * 2 and seen == sorted(seen)


@pytest.mark.parametrize(
    "ahead, right", [("top left red one, center blue: ", 1.0), ("top left, center: ", 1.0), ("here: ", 0.0)]
)
def test_what_a_count_has_ahead_of_it_is_not_judged_if_it_is_of_places(documents, ahead, right):
  def change(d, response):
    return (Text(ahead + response[0].text, True),) if d.kind == "question" else response

  result = score(documents, change)
  assert (result.scores["yes_no_accuracy"], result.scores["open_accuracy"]) == (right, right)


def test_all_kinds_are_answered_in_one_size_of_batch(documents):
  given = []

  class Sized(Oracle):
    def capacity(self, requests, *, batch_size):
      requests = list(requests)
      assert {r.respond for r in requests} == {"image", "text", "auto"} and batch_size == 64
      return len(requests)

    def generate(self, documents, *, holds, batch_size, **options):
      given.append((holds, batch_size))
      return super().generate(documents, **options)

  result = shapes.evaluate(Sized(documents), documents, limits=shapes.Limits(samples=1))
  assert len(given) == 5 and set(given) == {(len(result.cases), 64)}


# --- single verdicts ------------------------------------------------------------------------------------------------

RED = Thing("circle", "red", "small", "top left")


def drawn(*things):
  return render(Scene(tuple(things), ((0.0, 0.0),) * len(things)))


def test_size_is_scored_apart_for_single_objects():
  meta = {"tag": "single_object", "include": [language.as_include(RED, "color", "size", "place")]}
  large = Thing("circle", "red", "large", "top left")
  marks, reason = shapes_judge.picture(detector.detect(drawn(large)), meta)
  assert marks["single_object"] == (1.0, 1.0) and not reason
  assert marks["single_object_size"] == (0.0, 1.0) and marks["single_object_exact"] == (0.0, 1.0)
  two, _ = shapes_judge.picture(detector.detect(drawn(RED, Thing("square", "blue", "large", "right"))), meta)
  assert two["single_object"] == (1.0, 1.0) and two["single_object_exact"] == (0.0, 1.0)
  blue, reason = shapes_judge.picture(detector.detect(drawn(Thing("circle", "blue", "small", "top left"))), meta)
  assert blue["single_object"] == (0.0, 1.0) and "found 0 red; and 1 blue" in reason
  assert blue["single_object_shape"] == blue["single_object_place"] == (1.0, 1.0)
  assert blue["single_object_color"] == (0.0, 1.0)


@pytest.mark.parametrize("text, parsed", [
    ("yes", "yes"), ("No", "no"), ("Yes.", "yes"), (" no, it isn't", "no"), ("a no", "no"), ("the yes", None),
    ("", None), ("maybe", None)])
def test_yes_no_is_read_as_mme_reads_it(text, parsed):
  assert shapes_judge.parse_yes_no(text) == parsed


def test_open_answers_match_but_for_case_and_final_punctuation():
  question = {"form": "open", "answer": "top left"}
  assert shapes_judge.answer(" Top left. ", question)
  assert not shapes_judge.answer("top", question) and not shapes_judge.answer("the top left", question)


def test_captions_get_partial_credit_for_attributes():
  things = (RED, Thing("square", "blue", "large", "right"))
  exact = language.describe(things[::-1])
  assert shapes_judge.caption(exact, things)[0] == {"captions": (1.0, 1.0), "caption_attributes": (1.0, 1.0)}
  marks, reason = shapes_judge.caption(exact.replace("red", "green"), things)
  assert marks == {"captions": (0.0, 1.0), "caption_attributes": (7 / 8, 1.0)} and reason
  assert shapes_judge.caption(language.describe(things[:1]), things)[0]["caption_attributes"] == (0.5, 1.0)
  assert shapes_judge.caption("colourless green ideas", things)[0]["caption_attributes"] == (0.0, 1.0)


@pytest.mark.slow
def test_words_ahead_of_a_picture_are_judged_apart_from_it(documents):
  things = {d.id: d.meta.get("things") for d in documents}
  drawn = [d for d in documents if d.kind in ("caption_to_image", "edit")]

  def planned(words):
    return score(drawn, lambda prompt, response: (Text(words(prompt), True), *response)).scores

  def told(prompt):
    return language.outline(records.as_things(things[prompt.id]))

  names = [f"{kind}_{mark}" for kind in ("picture", "edit") for mark in ("plans", "as_planned")]
  assert [planned(told).get(n) for n in names] == [1.0] * 4
  for ahead in ("top small red cross to nothing", "top small red cross and nothing to left large blue square"):
    changed = planned(lambda prompt, ahead=ahead: f"{ahead}: {told(prompt)}")
    assert [changed[n] for n in names] == [1.0] * 4  # an edit's words say ahead of it what was there and changes
  gone = "top small red cross to nothing"
  odds = "so it is", "top small red cross", "nothing to it", "nothing to nothing", f"nothing and {gone}", f"{gone} and {gone}"
  for odd in odds:  # these are no edit's words
    assert planned(lambda prompt, odd=odd: f"{odd}: {told(prompt)}")["edit_plans"] == 0.0
  # A plan that says too little, and one that says nothing: the pictures are as right as before.
  less = planned(lambda prompt: "center small black cross")
  assert less["edits"] == 1.0 and max(less[n] for n in names) < 0.3
  none = planned(lambda prompt: "and so on")
  assert none["edits"] == 1.0 and none["edit_plans"] == none["picture_plans"] == 0.0 and "edit_as_planned" not in none
  assert not set(names) & set(score(drawn).scores)


def test_an_edit_of_size_needs_the_size_and_others_do_not():
  large = Thing("circle", "red", "large", "top left")
  other = Thing("square", "blue", "large", "right")
  meta = {"source": [["circle", "red", "small", "top left"]], "things": [["circle", "red", "large", "top left"]],
          "operation": "size"}
  assert shapes_judge.edit(detector.detect(drawn(large)), meta)[0]["edits"] == (1.0, 1.0)
  assert shapes_judge.edit(detector.detect(drawn(RED)), meta)[0]["edit_size"] == (0.0, 1.0)
  meta = {"source": [["circle", "red", "large", "top left"]], "operation": "add",
          "things": [["circle", "red", "large", "top left"], ["square", "blue", "large", "right"]]}
  marks, _ = shapes_judge.edit(detector.detect(drawn(RED, other)), meta)
  assert marks["edits"] == (1.0, 1.0) and marks["edits_exact"] == (0.0, 1.0) and marks["kept"] == (1.0, 1.0)
  marks, _ = shapes_judge.edit(detector.detect(drawn(other)), meta)
  assert marks["edits"] == (0.0, 1.0) and marks["kept"] == (0.0, 1.0)


def story(*segments):
  shown = [Text(s, True) if isinstance(s, str) else Image(s, True) for s in segments]
  turns, marks = shapes_judge.story(shown, [RED])
  return turns, {n: got / of if of else None for n, (got, of) in marks.items()}


def test_a_story_is_followed_turn_by_turn():
  tell = "a small red circle at the top left", "it turns blue", "it grows"
  blue, grown = Thing("circle", "blue", "small", "top left"), Thing("circle", "blue", "large", "top left")
  pictures = drawn(RED), drawn(blue), drawn(grown)
  whole = [x for pair in zip(tell, pictures) for x in pair]
  states = [things for thing in (RED, blue, grown) for things in ((thing,), ())]
  turns, marks = story(*whole)
  assert all(t.right for t in turns) and set(marks.values()) == {1.0}
  turns, marks = story(*whole[:5], drawn(blue))  # told to grow, it didn't
  assert [t.right for t in turns] == [True, True, False] and marks["story_texts"] == 1.0
  assert marks["story_turns"] == marks["story_pictures"] == pytest.approx(2 / 3)
  turns, marks = story(*whole[:2], "it turns red", drawn(RED), "it turns blue", drawn(blue))  # red already
  assert [t.right for t in turns] == [True, False, True] and marks["story_pictures"] == 1.0
  turns, marks = story(*whole, "it leaves")  # told, but not drawn
  assert [t.right for t in turns] == [True, True, True, False] and marks["story_turns"] == 0.75
  assert story(*whole[:2])[1]["story_turns"] == pytest.approx(1 / 3)  # two turns are missing
  # Outlines behind colons count by themselves alone.
  outlined = [s if i % 2 else f"{s}: {language.outline(things)}" for i, (s, things) in enumerate(zip(whole, states))]
  turns, marks = story(*outlined)
  assert all(t.right for t in turns) and marks["story_plans"] == marks["story_turns"] == 1.0
  outlined[2] = outlined[2].partition(":")[0] + ": center small black cross"
  turns, marks = story(*outlined)
  assert all(t.right for t in turns) and marks["story_plans"] == pytest.approx(2 / 3) and "story_plans" not in story(*whole)[1]
  turns, marks = story(*(s if i % 2 else f"{s}: and so on" for i, s in enumerate(whole)))
  assert not any(t.right for t in turns) and marks["story_texts"] == 0.0
  _, marks = story("a small green cross at the top", drawn(Thing("cross", "green", "small", "top")))
  assert marks["story_on_topic"] == 0.0


@pytest.mark.parametrize("segments", [
    (), ("",), ("garbage",), (drawn(RED),), (drawn(RED), drawn(RED)), ("a small red circle at the top left",),
    ("it leaves", drawn(RED)), ("a small red circle at the top left", drawn(RED), "it leaves", drawn()),
    ("x", "y", drawn(RED), "z") , ("a small red circle at the top left", drawn(RED)) * 7])
def test_malformed_stories_score_low_and_never_fail(segments):
  turns, marks = story(*segments)
  assert marks["story_turns"] <= 1 / 3 and marks["story_length_ok"] == 0.0 or len(turns) == 3
  assert not any(t.right for t in turns[1:])


def test_intervals_hold_the_score_and_narrow_with_more_documents():
  def interval(n):
    cases = [Case("k", "", str(i), "", bool(i % 4), {"s": (float(bool(i % 4)), 1.0)}) for i in range(n)]
    result = summarize(cases, means={}, seconds={})
    low, high = result.intervals["s"]
    assert low < result.scores["s"] == 0.75 < high
    return high - low

  wide, narrow = interval(40), interval(640)
  assert wide == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 40) ** 0.5, rel=0.15) and narrow < wide / 3
  assert summarize([], means={"m": ["s"]}, seconds={}).scores == {}


def test_a_mean_needs_all_its_parts():
  documents = [records.make_document("caption_to_image", "test", i) for i in range(5)]
  assert "geneval_overall" not in score(documents).scores


def test_what_is_not_of_this_world_is_refused(documents):
  with pytest.raises(BadRequest, match="nothing to judge"):
    shapes.evaluate(Oracle(documents), [Document((Text("hello"),), kind="other"), None])
  with pytest.raises(BadRequest, match="samples"):
    shapes.Limits(samples=0)


def test_the_table_shows_every_score(perfect):
  text = shapes_table.table(perfect)
  for name, value in perfect.scores.items():
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
    assert f"{100 * value:.1f}" in line and str(perfect.counts[name]) in line.split()
  assert max(map(len, text.splitlines())) <= 112

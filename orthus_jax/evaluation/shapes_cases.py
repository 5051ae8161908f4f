"""Responses to the built-in world's documents judged, kind by kind."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.shapes import language, records
from orthus_jax.evaluation import shapes_judge as judge
from orthus_jax.evaluation.results import Case

_OPEN_CORE = ("color", "shape", "count")
_SHUFFLES = 8


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt and the document it comes from; `question` is the record of the question asked."""

  document: Document
  prompt: Document
  sample: int = 0
  question: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _picture(response: Sequence[Any]) -> np.ndarray | None:
  return next((s.pixels for s in response if isinstance(s, Image)), None)


def _judge_pictures(requests: Sequence[Example], responses: Sequence[tuple]) -> list[Case]:
  documents = {r.document.id: r.document for r in requests}
  chance = _chance(list(documents.values()))
  any_right: dict[str, bool] = collections.defaultdict(bool)
  verdicts = []
  for request, response in zip(requests, responses):
    detections = judge.detect(_picture(response))
    marks, reason = judge.picture(detections, request.document.meta)
    marks |= _planned("picture", judge.picture, response, detections, request.document)
    any_right[request.document.id] |= not reason
    verdicts.append((request, response, detections, marks, reason))
  several = len(requests) > len(documents)
  cases = []
  for request, response, detections, marks, reason in verdicts:
    d = request.document
    if several and request.sample == 0:
      marks = marks | {"geneval_prompts": (float(any_right[d.id]), 1.0)}
    cases.append(Case(
        kind=d.kind, tag=d.meta["tag"], id=d.id, prompt=d.texts[0].text, right=not reason, marks=marks,
        response=response, seen=judge.say(detections), reason=reason, baseline=chance[d.id],
    ))  # fmt: skip
  return cases


def _planned(name: str, verdict: Callable, response: Sequence[Any], detections: Sequence[Any], d: Document) -> dict[str, Any]:
  """Marks of the words ahead of a picture, and of the picture by them."""
  marks = judge.planned(response, detections, lambda found: not verdict(found, d.meta)[1])
  return {f"{name}_{mark}": of for mark, of in marks.items()}


def _chance(documents: Sequence[Document]) -> dict[str, dict[str, tuple[float, float]]]:
  """Marks that pictures of other documents get for a document's caption, by its id."""
  seen = [judge.detect(d.images[0].pixels) for d in documents]
  order = np.random.default_rng(0).permutation(len(documents))
  place = np.argsort(order)
  chance = {}
  for i, d in enumerate(documents):
    total: dict[str, list[float]] = {}
    for shift in range(1, min(_SHUFFLES + 1, len(documents))):
      other = order[(place[i] + shift) % len(documents)]
      for name, (got, of) in judge.picture(seen[other], d.meta)[0].items():
        entry = total.setdefault(name, [0.0, 0.0])
        entry[0] += got
        entry[1] += of
    chance[d.id] = {name: (got, of) for name, (got, of) in total.items()}
  return chance


def _judge_questions(requests: Sequence[Example], responses: Sequence[tuple]) -> list[Case]:
  # A count may have ahead of it what stands where; it is the answer that is judged.
  said = (" ".join(s.text for s in response if isinstance(s, Text)) for response in responses)
  answers = [language.split_counted(text.strip())[1] for text in said]
  rights = [judge.answer(a, r.question) for a, r in zip(answers, requests)]
  by_type: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for r in requests:
    if r.question["form"] == "open":
      by_type[r.question["type"]][r.question["answer"]] += 1
  pairs: dict[tuple[str, int], list[bool]] = collections.defaultdict(list)
  cases = []
  for request, response, right in zip(requests, responses, rights):
    q, d, got = request.question, request.document, float(right)
    names, base = [], 0.0
    marks, baseline = {}, {}
    if q["form"] == "open":
      names = [f"open_{q['type']}", "open_accuracy_all", *(["open_accuracy"] if q["type"] in _OPEN_CORE else [])]
      base = float(q["answer"] == by_type[q["type"]].most_common(1)[0][0])
    elif q["pair"] is not None:
      # Without a partner of the other answer, always saying yes would pay.
      names, base = [f"yes_no_{q['type']}", "yes_no_accuracy"], float(q["answer"] == "yes")
      both = pairs[d.id, q["pair"]]
      both.append(right)
      if len(both) == 2:
        for name in (f"pair_{q['type']}", "pair_accuracy"):
          marks[name], baseline[name] = (float(all(both)), 1.0), (0.0, 1.0)
    marks |= {name: (got, 1.0) for name in names}
    baseline |= {name: (base, 1.0) for name in names}
    cases.append(Case(
        kind=d.kind, tag=q["type"], id=d.id, prompt=q["question"], given=d.images[0].pixels, response=response,
        expected=q["answer"], right=right, reason="" if right else f"expected {q['answer']}", marks=marks,
        baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_captions(requests: Sequence[Example], responses: Sequence[tuple]) -> list[Case]:
  things = [records.as_things(r.document.meta["things"]) for r in requests]
  cases = []
  for i, (request, response) in enumerate(zip(requests, responses)):
    d = request.document
    text = " ".join(s.text for s in response if isinstance(s, Text))
    marks, reason = judge.caption(text, things[i])
    baseline = judge.caption(language.describe(things[(i + 1) % len(things)]), things[i])[0] if len(things) > 1 else {}
    cases.append(Case(
        kind=d.kind, tag=str(len(things[i])), id=d.id, prompt=request.prompt.texts[0].text, given=d.images[0].pixels,
        response=response, expected=language.describe(language.reading_order(things[i])), right=not reason,
        reason=reason, marks=marks, baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_edits(requests: Sequence[Example], responses: Sequence[tuple]) -> list[Case]:
  cases = []
  for request, response in zip(requests, responses):
    d = request.document
    detections = judge.detect(_picture(response))
    marks, reason = judge.edit(detections, d.meta)
    marks |= _planned("edit", judge.edit, response, detections, d)
    baseline, _ = judge.edit(judge.detect(d.images[0].pixels), d.meta)
    cases.append(Case(
        kind=d.kind, tag=d.meta["operation"], id=d.id, prompt=request.prompt.texts[0].text, given=d.images[0].pixels,
        target=d.images[-1].pixels, response=response, right=not reason, reason=reason, seen=judge.say(detections),
        expected=language.describe(records.as_things(d.meta["things"])), marks=marks, baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_stories(requests: Sequence[Example], responses: Sequence[tuple]) -> list[Case]:
  cases = []
  for request, response in zip(requests, responses):
    d = request.document
    turns, marks = judge.story(response, records.as_things(d.meta["turns"][0]))
    wrong = [f"turn {i}: {t.reason}" for i, t in enumerate(turns, 1) if not t.right]
    wrong += [] if marks["story_length_ok"][0] else [f"{sum(t.pixels is not None for t in turns)} pictures"]
    wrong += [] if marks["story_on_topic"][0] else ["not about what was asked"]
    cases.append(Case(
        kind=d.kind, tag="", id=d.id, prompt=d.texts[0].text, response=tuple(response), right=not wrong,
        reason="; ".join(wrong), marks=marks, turns=turns,
    ))  # fmt: skip
  return cases


JUDGES: dict[str, Callable[[Sequence[Example], Sequence[tuple]], list[Case]]] = {
    "caption_to_image": _judge_pictures, "image_to_caption": _judge_captions, "question": _judge_questions,
    "edit": _judge_edits, "story": _judge_stories,
}  # fmt: skip




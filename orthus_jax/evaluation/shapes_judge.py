"""Verdicts on single responses of the `shapes` benchmark: each takes what was answered and what is true, and gives
marks (score name → points got, points there were) and the reason why it is wrong, "" if it isn't."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from orthus_jax.data.documents import Image, Segment, Text
from orthus_jax.data.shapes import changes, detector, drawing, language, records, world
from orthus_jax.data.shapes.detector import Detection
from orthus_jax.data.shapes.world import Thing
from orthus_jax.evaluation import shapes_geneval
from orthus_jax.evaluation.results import Marks, Turn

_ATTRIBUTES = {"class": "shape", "color": "color", "size": "size", "place": "place"}
_LEAST_TURNS, _MOST_TURNS = 3, 5


def detect(pixels: np.ndarray | None) -> list[Detection]:
  """What is in a picture; nothing, where there is none."""
  return [] if pixels is None else detector.detect(pixels)


def say(detections: Sequence[Detection]) -> str:
  """Detections in words."""
  return language.describe([d.thing for d in detections]) or "nothing"


def _plain(thing: Thing) -> tuple[str, str, str]:
  return thing.shape, thing.color, thing.place


def _resized(before: Iterable[Thing], after: Iterable[Thing]) -> list[Thing]:
  """Things whose size alone changed."""
  sizes = {_plain(t): t.size for t in before}
  return [t for t in after if sizes.get(_plain(t), t.size) != t.size]


def shows(detections: Sequence[Detection], things: Sequence[Thing], *, sized: Sequence[Thing] = ()) -> bool:
  """Whether a picture shows these things and no others: shape, colour and place, and the size of those in `sized`."""
  seen = collections.Counter(_plain(d.thing) for d in detections)
  return seen == collections.Counter(map(_plain, things)) and {d.thing for d in detections} >= set(sized)


def picture(detections: Sequence[Detection], meta: Mapping[str, Any]) -> tuple[dict[str, tuple[float, float]], str]:
  """Judges a picture by its caption, by GenEval's rules.

  A single object is right when shape, colour and place are; its size, which only some captions name, is scored apart.
  """
  tag, include = meta["tag"], meta["include"]
  right, reason = shapes_geneval.verdict(detections, meta)
  marks = {}
  if tag == "single_object":
    (need,) = include
    exact = right and len(detections) == 1
    sizeless = {k: v for k, v in need.items() if k != "size"}
    right, reason = shapes_geneval.verdict(detections, {**meta, "include": [sizeless]})
    for name, attribute in _ATTRIBUTES.items():
      if name in need:
        found = any(getattr(d, attribute) == need[name] for d in detections)
        marks[f"single_object_{attribute}"] = (float(found), 1.0)
    marks["single_object_exact"] = (float(exact), 1.0)
  return {tag: (float(right), 1.0), "geneval_images": (float(right), 1.0)} | marks, reason


def planned(
    response: Sequence[Segment], detections: Sequence[Detection], fits: Callable[[Sequence[Detection]], bool]
) -> dict[str, tuple[float, float]]:
  """Judges the words ahead of a picture: would it be right if it showed what they say, and does it show that?

  Args:
    response: of the model.
    detections: what its picture shows.
    fits: whether a picture of such detections is right.

  Returns:
    "plans" and "as_planned"; nothing where there are no words.
  """
  said = " ".join(s.text for s in response if isinstance(s, Text))
  if not said:
    return {}
  things = (language.parse_outline(language.aim(said)) or ())[: world.MAX_THINGS]
  ideal = detector.detect(drawing.render(world.Scene(things, ((0.0, 0.0),) * len(things)), 32)) if things else []
  marks = {"plans": (float(bool(things) and fits(ideal)), 1.0)}
  return marks | ({"as_planned": (float(shows(detections, things)), 1.0)} if things else {})


# --- words ----------------------------------------------------------------------------------------------------------


def parse_yes_no(text: str) -> str | None:
  """MME's parser: exactly yes or no, else the one within the first four characters, else None."""
  text = text.strip().lower()
  if text in ("yes", "no"):
    return text
  return next((word for word in ("yes", "no") if word in text[:4]), None)


def answer(text: str, question: Mapping[str, Any]) -> bool:
  """Whether an answer is right: yes/no by MME's parser, open ones word for word but for case and punctuation."""
  if question["form"] == "yes_no":
    return parse_yes_no(text) == question["answer"]
  return text.strip().lower().rstrip(".,;:!?").rstrip() == question["answer"]


def caption(text: str, things: Sequence[Thing]) -> tuple[dict[str, tuple[float, float]], str]:
  """Judges a description: whether it says exactly what is there, and how many attributes it gets right."""
  said = language.parse_caption(text) or []
  right = sorted(language.parse_things(text) or ()) == sorted(things)
  agree_ST = np.asarray(
      [[sum(s.get(k) == getattr(t, a) for k, a in _ATTRIBUTES.items()) for t in things] for s in said]
  )
  share = 0.0
  if said:
    chosen = optimize.linear_sum_assignment(agree_ST, maximize=True)
    share = float(agree_ST[chosen].sum()) / (len(_ATTRIBUTES) * max(len(said), len(things)))
  reason = "" if right else "can't be parsed" if not said else f"{share:.0%} of the attributes right"
  return {"captions": (float(right), 1.0), "caption_attributes": (share, 1.0)}, reason


# --- edits and stories ----------------------------------------------------------------------------------------------


def edit(detections: Sequence[Detection], meta: Mapping[str, Any]) -> tuple[dict[str, tuple[float, float]], str]:
  """Judges an edited picture. Sizes count where the instruction is about one; "edits_exact" counts them all."""
  source, target = records.as_things(meta["source"]), records.as_things(meta["things"])
  right = shows(detections, target, sized=_resized(source, target))
  seen = {_plain(d.thing) for d in detections}
  untouched = [t for t in target if t in source]
  marks = {
      "edits": (float(right), 1.0), f"edit_{meta['operation']}": (float(right), 1.0),
      "edits_exact": (float(detector.matches(detections, target)), 1.0),
      "kept": (float(sum(_plain(t) in seen for t in untouched)), float(len(untouched))),
  }  # fmt: skip
  reason = ""
  if not right:
    reason = "left as it was" if shows(detections, source) else f"saw {say(detections)}"
  return marks, reason


def split_turns(response: Sequence[Segment]) -> list[tuple[str, np.ndarray | None]]:
  """Words and the picture that ends them; "" or None where one is missing."""
  turns: list[tuple[str, np.ndarray | None]] = []
  words: list[str] = []
  for segment in response:
    if isinstance(segment, Text):
      words.append(segment.text)
    elif isinstance(segment, Image):
      turns.append((" ".join(words), segment.pixels))
      words = []
  return [*turns, (" ".join(words), None)] if words else turns


def story(response: Sequence[Segment], asked: Sequence[Thing]) -> tuple[tuple[Turn, ...], Marks]:
  """Follows a story, sentence by sentence, and looks whether its pictures keep up.

  A turn is right when its sentence tells a change that can happen, or at first describes things in full, and its
  picture shows what is there by then. Turns missing from the least three count as wrong. After a sentence that makes no
  sense the things stay as they were.

  Args:
    response: any segments; nothing that a model may produce makes this fail. An outline behind a sentence's colon counts by
      itself alone ("story_plans": of turns that make sense and have one, those whose outline says what is there by then).
    asked: the things that the prompt named, of which shape and colour count.
  """
  things: tuple[Thing, ...] = ()
  turns, sensible, fitting, planned, as_told = [], 0, 0, 0, 0
  on_topic = False
  found = split_turns(response)
  for number, (text, pixels) in enumerate(found):
    sentence, plan = language.split_told(text)
    after = changes.apply_sentence(things, sentence) if text else None
    fits, reason = False, ""
    if not after or sorted(after) == sorted(things):
      reason = "the sentence tells no possible change" if things else "things aren't described in full"
      reason = reason if text else "nothing is told"
    else:
      sensible += 1
      detections = detect(pixels)
      fits = pixels is not None and shows(detections, after, sized=_resized(things, after))
      fitting += fits
      planned += bool(plan)
      as_told += bool(plan) and sorted(language.parse_outline(plan) or ()) == sorted(after)
      if not fits:
        reason = "no picture" if pixels is None else f"saw {say(detections)}"
      if number == 0:
        named = collections.Counter((t.shape, t.color) for t in asked)
        on_topic = collections.Counter((t.shape, t.color) for t in after) == named
      things = after
    turns.append(Turn(text, pixels, right=fits, reason=reason))
  of = float(max(len(found), _LEAST_TURNS))
  pictures = sum(pixels is not None for _, pixels in found)
  marks = {
      "story_turns": (float(fitting), of), "story_texts": (float(sensible), of),
      "story_pictures": (float(fitting), float(sensible)), "story_on_topic": (float(on_topic), 1.0),
      "story_length_ok": (float(_LEAST_TURNS <= pictures <= _MOST_TURNS), 1.0),
  }  # fmt: skip
  if planned:
    marks["story_plans"] = (float(as_told), float(planned))
  return tuple(turns), marks

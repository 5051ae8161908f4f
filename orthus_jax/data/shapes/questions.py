"""Questions about a `shapes` scene: yes/no ones in pairs of one yes and one no, and open ones.

Nothing in the words of a yes/no question tells its answer. Shapes, colours and cells are interchangeable in the way
scenes are sampled, so a false one is as likely to be named as a true one; counts aren't interchangeable, so `sample`
draws the true and the false count together, from a symmetric table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from orthus_jax.data.shapes import world
from orthus_jax.data.shapes.language import NUMBERS, PLURALS
from orthus_jax.data.shapes.world import COLORS, OPPOSITE, PLACES, SHAPES, Scene, Thing, pick

TYPES = ("existence", "count", "color", "position", "shape")

# _COUNTS[i][j]: weight of i + 1 things of a kind being asked about beside j + 1. Symmetric, so that each count is named
# truly as often as falsely; near misses and small counts weigh more.
_COUNTS = np.array([[0, 6, 2, 0], [6, 0, 3, 1], [2, 3, 0, 2], [0, 1, 2, 0]], np.float64)
_COUNT_PAIRS = tuple((i + 1, j + 1) for i in range(4) for j in range(4))
_COUNT_CUMULATIVE = np.cumsum(_COUNTS.ravel() / _COUNTS.sum())
_OTHERS = (0, 0, 1, 1, 2)
_SIMPLE = (1, 2, 2, 3)  # things in a simple scene
_OPEN = 0.6  # of the questions that aren't in pairs


@dataclasses.dataclass(frozen=True)
class Subject:
  """A scene to ask about.

  Attributes:
    scene: its first `count` things are alike in `of`, the others differ from them in it.
    of: "shape" or "color".
    count: how many there are.
    wrong_count: the count to name falsely; 0 where counting isn't asked about.
  """

  scene: Scene
  of: str
  count: int
  wrong_count: int


def sample(rng: np.random.Generator, *, simple: bool = False) -> Subject:
  """A scene to ask about; with `simple`, one of few things, about which counting isn't asked."""
  if simple:
    n, of = int(pick(rng, _SIMPLE)), "shape" if rng.integers(2) else "color"
    # Counting is left to the table below: here, one would be the answer whatever the picture shows.
    return Subject(world.sample_group(rng, 1, of=of, others=n - 1), of, 1, 0)
  count, wrong = _COUNT_PAIRS[int(np.searchsorted(_COUNT_CUMULATIVE, rng.random(), side="right"))]
  of = "shape" if rng.integers(2) else "color"
  others = min(int(pick(rng, _OTHERS)), world.MAX_THINGS - count)
  return Subject(world.sample_group(rng, count, of=of, others=others), of, count, wrong)


@dataclasses.dataclass(frozen=True)
class _Item:
  type: str
  about: tuple  # what is asked, so that nothing is asked twice
  yes: str
  no: str
  open: str = ""
  answer: str = ""


def ask(rng: np.random.Generator, subject: Subject, *, paired: bool = False) -> list[dict[str, Any]]:
  """Six to ten questions about one picture.

  Args:
    rng: the source of chance.
    subject: from `sample`.
    paired: whether each yes/no question comes with its partner, right after it (three pairs and one or two open
      questions). Otherwise each stands alone, yes or no by a fair coin, and nothing is asked twice: where several
      questions stand in one sequence, a partner would give its answer away.

  Returns:
    Records {"type", "form": "yes_no" | "open", "question", "answer", "pair": number or None}; of type "count" also the
    "attribute" that the question goes by, and the "places" of what counts.
  """
  records: list[dict[str, Any]] = []
  used: set[tuple] = set()

  def fresh(types: Sequence[str], *, to_open: bool = False) -> _Item | None:
    for _ in range(30):
      item = _MAKERS[str(pick(rng, types))](rng, subject)
      if item is None or (to_open and not item.open):
        continue
      if item.about not in used:
        used.add(item.about)
        return item
    return None  # a scene of one thing runs out of things to ask

  def add(item: _Item, form: str, truth: bool = True, pair: int | None = None) -> None:
    answer = item.answer if form == "open" else "yes" if truth else "no"
    question = item.open if form == "open" else item.yes if truth else item.no
    record: dict[str, Any] = {"type": item.type, "form": form, "question": question, "answer": answer, "pair": pair}
    if item.type == "count":
      record |= {"attribute": subject.of, "places": [t.place for t in subject.scene.things[: subject.count]]}
    records.append(record)

  if paired:
    for pair in range(3):
      item, first = fresh(TYPES) or _existence(rng, subject), bool(rng.integers(2))
      add(item, "yes_no", first, pair)
      add(item, "yes_no", not first, pair)
    for _ in range(int(rng.integers(1, 3))):
      more = fresh(TYPES[1:], to_open=True)
      if more is not None:
        add(more, "open")
    return records
  for _ in range(6 if len(subject.scene.things) == 1 else int(rng.integers(8, 11))):
    # Existence has no open form, so that it makes up more of the yes/no questions.
    opened = fresh(TYPES[1:], to_open=True) if rng.random() < _OPEN else None
    if opened is not None:
      add(opened, "open")
    else:
      add(fresh(TYPES) or _existence(rng, subject), "yes_no", bool(rng.integers(2)))
  return records


def _which(rng: np.random.Generator) -> str:
  return "which" if rng.integers(2) else "what"


def _other(rng: np.random.Generator, options: Sequence[str], present: Sequence[str]) -> str:
  """One that isn't the first of `present`: every second time one of the others present, which is the harder mistake."""
  near = [p for p in present[1:] if p != present[0]]
  if near and rng.integers(2):
    return str(pick(rng, near))
  return str(pick(rng, [o for o in options if o != present[0]]))


def _existence(rng: np.random.Generator, subject: Subject) -> _Item:
  things, kind = subject.scene.things, int(rng.integers(3))
  verb = "do you see" if rng.integers(2) else "is there"
  thing: Thing = pick(rng, things)
  if kind == 0:
    absent = [s for s in SHAPES if all(s != t.shape for t in things)]
    yes, no = thing.shape, str(pick(rng, absent))
  elif kind == 1:
    absent = [c for c in COLORS if all(c != t.color for t in things)]
    yes, no = f"{thing.color} thing", f"{pick(rng, absent)} thing"
  else:
    # One attribute is there and, every second time where it can be, the other too, on another thing.
    pairs = {(t.color, t.shape) for t in things}
    if rng.integers(2):
      near, far = [(t.color, thing.shape) for t in things], [(c, thing.shape) for c in COLORS]
    else:
      near, far = [(thing.color, t.shape) for t in things], [(thing.color, s) for s in SHAPES]
    near, far = [p for p in near if p not in pairs], [p for p in far if p not in pairs]
    wrong = pick(rng, near if near and rng.integers(2) else far)
    yes, no = f"{thing.color} {thing.shape}", f"{wrong[0]} {wrong[1]}"
  return _Item("existence", ("existence", yes), f"{verb} a {yes}?", f"{verb} a {no}?")


def _count(rng: np.random.Generator, subject: Subject) -> _Item | None:
  if not subject.wrong_count:
    return None
  first = subject.scene.things[0]
  many = PLURALS[first.shape] if subject.of == "shape" else f"{first.color} things"
  one = first.shape if subject.of == "shape" else f"{first.color} thing"
  asked = bool(rng.integers(2))

  def say(n: int) -> str:
    verb = "do you see" if asked else "is there" if n == 1 else "are there"
    return f"{verb} {NUMBERS[n]} {one if n == 1 else many}?"

  how = f"how many {many} {'do you see' if rng.integers(2) else 'are there'}?"
  return _Item("count", ("count",), say(subject.count), say(subject.wrong_count), how, NUMBERS[subject.count])


def _reference(rng: np.random.Generator, things: Sequence[Thing], thing: Thing, hide: str) -> str | None:
  """Words that single a thing out and don't name the attribute `hide`."""
  options = []
  if hide != "shape" and sum(t.shape == thing.shape for t in things) == 1:
    options.append(f"the {thing.shape}")
  if hide != "color" and sum(t.color == thing.color for t in things) == 1:
    options.append(f"the {thing.color} thing")
  if hide == "place" and sum((t.color, t.shape) == (thing.color, thing.shape) for t in things) == 1:
    options.append(f"the {thing.color} {thing.shape}")
  if hide != "place":
    options.append(f"the thing at the {thing.place}")
  return str(pick(rng, options)) if options else None


def _color(rng: np.random.Generator, subject: Subject) -> _Item:
  things, thing = _focus(rng, subject)
  name = _reference(rng, things, thing, "color")
  wrong = _other(rng, COLORS, [t.color for t in things])
  question = f"{_which(rng)} color is {name}?"
  return _Item("color", ("color", thing), f"is {name} {thing.color}?", f"is {name} {wrong}?", question, thing.color)


def _shape(rng: np.random.Generator, subject: Subject) -> _Item:
  things, thing = _focus(rng, subject)
  name = _reference(rng, things, thing, "shape")
  wrong = _other(rng, SHAPES, [t.shape for t in things])
  question = f"{_which(rng)} shape is {name}?"
  return _Item("shape", ("shape", thing), f"is {name} a {thing.shape}?", f"is {name} a {wrong}?", question, thing.shape)


def _position(rng: np.random.Generator, subject: Subject) -> _Item | None:
  things, thing = _focus(rng, subject)
  name = _reference(rng, things, thing, "place")
  if name is None:
    return None
  if len(things) > 1 and rng.integers(2):
    other: Thing = pick(rng, things[1:])
    how, other_name = world.relation(thing, other), _reference(rng, things, other, "place")
    if how is None or other_name is None:
      return None
    return _Item("position", ("relation", frozenset((thing, other))), f"is {name} {how} {other_name}?",
                 f"is {name} {OPPOSITE[how]} {other_name}?")
  wrong = _other(rng, PLACES, [t.place for t in things])
  return _Item("position", ("place", thing), f"is {name} at the {thing.place}?", f"is {name} at the {wrong}?",
               f"where is {name}?", thing.place)


def _focus(rng: np.random.Generator, subject: Subject) -> tuple[list[Thing], Thing]:
  """One thing of the scene, and all things with that one first."""
  things = list(subject.scene.things)
  thing = things.pop(int(rng.integers(len(things))))
  return [thing, *things], thing


_MAKERS: dict[str, Callable[[np.random.Generator, Subject], _Item | None]] = {
    "existence": _existence, "count": _count, "color": _color, "position": _position, "shape": _shape}

"""Scenes that change: edits by instruction, and stories in which one thing changes at a time."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
import re

import numpy as np

from orthus_jax.data.shapes import world
from orthus_jax.data.shapes.language import any_of, describe, located, normalize, noun, noun_pattern, parse_things
from orthus_jax.data.shapes.world import COLORS, PLACES, SHAPES, SIZES, Scene, Thing, pick, split_of
from orthus_jax.errors import BadRequest

OPERATIONS = ("color", "shape", "size", "place", "add", "remove")


@dataclasses.dataclass(frozen=True)
class Change:
  """One change to a scene.

  Attributes:
    operation: one of OPERATIONS; the first four name the attribute that changes.
    index: which thing changes or goes; for "add" the place of the new one, after the last.
    value: the attribute's new value, or the new Thing; None for "remove".
  """

  operation: str
  index: int
  value: str | Thing | None = None

  def apply(self, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The things after the change."""
    things = list(things)
    if isinstance(self.value, Thing):
      things.append(self.value)
    elif self.value is None:
      del things[self.index]
    else:
      things[self.index] = dataclasses.replace(things[self.index], **{self.operation: self.value})
    return tuple(things)


def possible_changes(things: Sequence[Thing], operation: str) -> list[Change]:
  """All changes of one sort that leave one to four things, all of different shapes, in different cells."""
  if operation == "remove":
    return [Change("remove", i) for i in range(len(things))] if len(things) > 1 else []
  shapes = [s for s in SHAPES if all(s != t.shape for t in things)]
  places = [p for p in PLACES if all(p != t.place for t in things)]
  if operation == "add":
    if len(things) == world.MAX_THINGS:
      return []
    return [Change("add", len(things), Thing(*new)) for new in itertools.product(shapes, COLORS, SIZES, places)]
  options = {"color": COLORS, "shape": shapes, "size": SIZES, "place": places}
  if operation not in options:
    raise BadRequest(f"no change is called {operation!r}; the changes are {', '.join(OPERATIONS)}")
  return [Change(operation, i, v) for i, t in enumerate(things) for v in options[operation]
          if v != getattr(t, operation)]


def sample_change(rng: np.random.Generator, things: Sequence[Thing], operation: str, split: str) -> Change | None:
  """One of the possible changes whose outcome is in the split; None where there is none."""
  options = possible_changes(things, operation)
  for i in rng.permutation(len(options)).tolist():
    if split_of(options[i].apply(things)) == split:
      return options[i]
  return None


def change_scene(scene: Scene, change: Change, jitter: tuple[float, float]) -> Scene:
  """The scene after a change; what stays keeps its jitter, what is new gets the one given."""
  if isinstance(change.value, Thing):
    return scene.add(change.value, jitter)
  if change.value is None:
    return scene.remove(change.index)
  return scene.replace(change.index, **{change.operation: change.value})


# --- edits ----------------------------------------------------------------------------------------------------------

_INSTRUCTIONS = {
    "color": ("make the {old} {value}", "change the {old} to {value}", "paint the {old} {value}"),
    "shape": ("turn the {old} into a {value}", "change the {old} into a {value}"),
    "size": ("make the {old} {value}", "change the {old} to {value}"),
    "place": ("move the {old} to the {value}", "put the {old} at the {value}"),
    "add": ("add {new}", "draw {new}"),
    "remove": ("remove the {old}", "erase the {old}", "take away the {old}"),
}


@dataclasses.dataclass(frozen=True)
class Edit:
  """A scene, an instruction, and the scene asked for."""

  source: Scene
  instruction: str
  change: Change
  target: Scene

  @property
  def before(self) -> Thing | None:
    """The thing that changes, or None if one is added."""
    return None if self.change.operation == "add" else self.source.things[self.change.index]

  @property
  def after(self) -> Thing | None:
    """What it becomes, or None if it is removed."""
    return None if self.change.operation == "remove" else self.target.things[self.change.index]


def sample_edit(rng: np.random.Generator, split: str) -> Edit:
  """An edit of one to three things, both of whose scenes are in the split."""
  operation = str(pick(rng, OPERATIONS))
  # So that an edit's outcome, too, has one to three things.
  low, high = {"add": (1, 2), "remove": (2, 3)}.get(operation, (1, 3))
  while True:
    scene = _sample_distinct(rng, int(rng.integers(low, high + 1)), split)
    change = sample_change(rng, scene.things, operation, split)
    if change is not None:
      return Edit(scene, _instruct(rng, scene.things, change), change,
                  change_scene(scene, change, world.sample_jitter(rng, 1)[0]))


def _sample_distinct(rng: np.random.Generator, n: int, split: str) -> Scene:
  return world.sample_in_split(lambda: world.sample_distinct(rng, n), split)


def _instruct(rng: np.random.Generator, things: Sequence[Thing], change: Change) -> str:
  template = str(pick(rng, _INSTRUCTIONS[change.operation]))
  if isinstance(change.value, Thing):
    return template.format(new=located(change.value))
  thing = things[change.index]
  # Shapes differ, so that the colour can be left out.
  return template.format(old=noun(thing.shape, color=thing.color if rng.integers(2) else None), value=change.value)


# --- stories --------------------------------------------------------------------------------------------------------

_OPENINGS = ("tell a story about {names}", "tell me a story of {names}", "write a story about {names}")
_FIRST = ("there is {things}", "we see {things}", "{things}")
_SENTENCES = {
    "color": ("{it} turns {value}", "{it} becomes {value}"),
    "shape": ("{it} turns into a {value}", "{it} becomes a {value}"),
    "size": ("{it} becomes {value}", "{it} {grows}"),
    "place": ("{it} moves to the {value}", "{it} goes to the {value}"),
    "add": ("{new} appears at the {place}", "{new} comes to the {place}"),
    "remove": ("{it} leaves", "{it} goes away"),
}


@dataclasses.dataclass(frozen=True)
class Story:
  """A prompt, then a sentence and a scene a turn."""

  prompt: str
  sentences: tuple[str, ...]
  scenes: tuple[Scene, ...]

  @property
  def texts(self) -> tuple[str, ...]:
    return (self.prompt, *self.sentences)


def sample_story(rng: np.random.Generator, split: str) -> Story:
  """Three to five turns about one or two things of different shapes; all its scenes are different and in the split."""
  turns = int(rng.integers(3, 6))
  while True:
    scenes = [_sample_distinct(rng, int(rng.integers(1, 3)), split)]
    things = scenes[0].things
    names = " and ".join(f"a {noun(t.shape, color=t.color)}" for t in things)
    sentences = [str(pick(rng, _FIRST)).format(things=describe(things))]
    while len(scenes) < turns:
      step = _next_scene(rng, scenes, split)
      if step is None:  # a dead end, which is common in the small splits: start over
        break
      sentences.append(step[0])
      scenes.append(step[1])
    else:
      return Story(str(pick(rng, _OPENINGS)).format(names=names), tuple(sentences), tuple(scenes))


def _next_scene(rng: np.random.Generator, scenes: Sequence[Scene], split: str) -> tuple[str, Scene] | None:
  scene, seen = scenes[-1], {frozenset(s.things) for s in scenes}
  operations = [o for o in OPERATIONS if o != ("remove" if len(scene.things) == 1 else "add")]
  for i in rng.permutation(len(operations)).tolist():
    change = sample_change(rng, scene.things, operations[i], split)
    if change is not None:
      after = change_scene(scene, change, world.sample_jitter(rng, 1)[0])
      if frozenset(after.things) not in seen:
        return _story_sentence(rng, scene.things, change), after
  return None


def _story_sentence(rng: np.random.Generator, things: Sequence[Thing], change: Change) -> str:
  template, value = str(pick(rng, _SENTENCES[change.operation])), change.value
  if isinstance(value, Thing):
    return template.format(new=f"a {noun(value.shape, color=value.color, size=value.size)}", place=value.place)
  it = "it" if len(things) == 1 else f"the {things[change.index].shape}"
  return template.format(it=it, value=value, grows="grows" if value == "large" else "shrinks")


# --- parsing --------------------------------------------------------------------------------------------------------

_THE = f"(?:(?P<it>it)|the {noun_pattern()}(?: at the {any_of(PLACES, 'place')})?)"
_TO_COLOR, _TO_SIZE = any_of(COLORS, "to_color"), any_of(SIZES, "to_size")
_TO_SHAPE, _TO_PLACE = f"an? {any_of(SHAPES, 'to_shape')}", f"the {any_of(PLACES, 'to_place')}"
_PATTERNS = tuple(re.compile(p) for p in (
    # told
    f"{_THE} (?:turns|becomes) (?:{_TO_COLOR}|{_TO_SIZE})",
    f"{_THE} (?:turns into|becomes) {_TO_SHAPE}",
    f"{_THE} (?P<resize>grows|shrinks)",
    f"{_THE} (?:moves|goes) to {_TO_PLACE}",
    f"an? {noun_pattern('_new')} (?:appears at|comes to) {_TO_PLACE}",
    f"{_THE} (?P<gone>leaves|goes away)",
    # asked for
    f"(?:make|paint) {_THE} (?:{_TO_COLOR}|{_TO_SIZE})",
    f"change {_THE} to (?:{_TO_COLOR}|{_TO_SIZE})",
    f"(?:turn|change) {_THE} into {_TO_SHAPE}",
    f"(?:move {_THE} to|put {_THE.replace('(?P<', '(?P<put_')} at) {_TO_PLACE}",
    f"(?:add|draw) an? {noun_pattern('_new')} at {_TO_PLACE}",
    f"(?P<gone>remove|erase|take away) {_THE}",
))


def apply_sentence(things: Sequence[Thing], text: str) -> tuple[Thing, ...] | None:
  """What is there after a sentence of a story, or after an instruction is carried out.

  Args:
    things: what was there; empty before the first sentence, which must say everything about what it names.
    text: one sentence or instruction.

  Returns:
    The things afterwards; None where the text isn't of this language, names something that isn't there or not
    alone there, or asks for what can't be.
  """
  if not things:
    return parse_things(text)
  text = normalize(text)
  for pattern in _PATTERNS:
    match = pattern.fullmatch(text)
    if match:
      return _apply(tuple(things), {k: v for k, v in match.groupdict().items() if v is not None})
  return None


def _apply(things: tuple[Thing, ...], said: dict[str, str]) -> tuple[Thing, ...] | None:
  if "shape_new" in said:
    if not {"color_new", "size_new"} <= said.keys():
      return None
    change = Change("add", len(things), Thing(said["shape_new"], said["color_new"], said["size_new"], said["to_place"]))
  else:
    said = {k.removeprefix("put_"): v for k, v in said.items()}
    named = {a: said[a] for a in ("shape", "color", "size", "place") if a in said}
    matching = [i for i, t in enumerate(things) if all(getattr(t, a) == v for a, v in named.items())]
    if len(matching) != 1:
      return None
    if "gone" in said:
      change = Change("remove", matching[0])
    elif "resize" in said:
      change = Change("size", matching[0], "large" if said["resize"] == "grows" else "small")
    else:
      operation = next(a for a in ("color", "shape", "size", "place") if f"to_{a}" in said)
      change = Change(operation, matching[0], said[f"to_{operation}"])
  after = change.apply(things)
  return after if len({t.place for t in after}) == len(after) and len(after) <= world.MAX_THINGS else None

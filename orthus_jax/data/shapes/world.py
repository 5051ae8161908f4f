"""The world of `shapes`: one to four coloured things on a 3x3 grid, how they are sampled and told apart (`drawing.py` draws).

Lengths are in units of a 32-pixel picture and scale with the resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
from typing import TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "black")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SPLITS = ("train", "validation", "test")
RESOLUTIONS = (32, 64, 128)
MAX_THINGS = 4

BACKGROUND = (250, 248, 240)
# Pairwise at least 150 apart in RGB, and apart in direction from the background, so that mixed edge pixels tell too.
RGB = {
    "red": (220, 40, 40),
    "green": (30, 175, 75),
    "blue": (30, 100, 235),
    "yellow": (250, 205, 30),
    "purple": (165, 40, 185),
    "black": (25, 25, 30),
}

CANVAS = 32.0
CELL_CENTERS = (5.2, 16.0, 26.8)
JITTER = 0.4
_JITTER_STEPS = 4  # jitter is a multiple of JITTER / 4, so that few different stencils exist and can be kept
SCALE = {"large": 1.0, "small": 0.68}
# Half the width and height of each large shape. None passes 4.25: neighbours then stay 1.5 apart with both jitters.
# Areas lie between 34 and 55, and every large one is bigger than every small one. The cross stands like an x, since an
# upright one is hard to tell from a diamond when small (overlaps of 0.72 and 0.51).
REACH = {"circle": 3.85, "square": 3.65, "triangle": 4.25, "diamond": 4.25, "cross": 4.1}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Thing:
  """One thing: a shape, colour and size (all of SHAPES, COLORS, SIZES) at one of PLACES."""

  shape: str
  color: str
  size: str
  place: str

  @property
  def cell(self) -> tuple[int, int]:
    """Column and row of the place, each 0..2."""
    row, column = divmod(PLACES.index(self.place), 3)
    return column, row


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
  """Things in different cells.

  Attributes:
    things: one to four.
    jitter: for each thing its offset (x, y) from its cell's centre, at most JITTER each way.
  """

  things: tuple[Thing, ...]
  jitter: tuple[tuple[float, float], ...]

  def replace(self, index: int, **changes: str) -> Scene:
    """The scene with one thing changed; it keeps its jitter."""
    things = list(self.things)
    things[index] = dataclasses.replace(things[index], **changes)
    return Scene(tuple(things), self.jitter)

  def remove(self, index: int) -> Scene:
    return Scene(self.things[:index] + self.things[index + 1:], self.jitter[:index] + self.jitter[index + 1:])

  def add(self, thing: Thing, jitter: tuple[float, float]) -> Scene:
    return Scene(self.things + (thing,), self.jitter + (jitter,))


def split_of(scene: Scene | Iterable[Thing]) -> str:
  """The split a scene belongs to, whatever its jitter and the order of its things: 90, 5 and 5 in a hundred."""
  things = scene.things if isinstance(scene, Scene) else scene
  description = "|".join(sorted(f"{t.shape} {t.color} {t.size} {t.place}" for t in things))
  bucket = int.from_bytes(hashlib.blake2b(description.encode(), digest_size=4).digest(), "big") % 100
  return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


# --- sampling -------------------------------------------------------------------------------------------------------


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
  """One of the options, evenly."""
  return options[int(rng.integers(len(options)))]


def sample_jitter(rng: np.random.Generator, n: int) -> tuple[tuple[float, float], ...]:
  """Offsets for n things."""
  steps = rng.integers(-_JITTER_STEPS, _JITTER_STEPS + 1, size=(n, 2)).tolist()
  return tuple((x * JITTER / _JITTER_STEPS, y * JITTER / _JITTER_STEPS) for x, y in steps)


def assemble(rng: np.random.Generator, shapes: Sequence[str], colors: Sequence[str],
             places: Sequence[str] | None = None) -> Scene:
  """A scene of the given shapes and colours, in random sizes and, unless given, random cells."""
  n = len(shapes)
  if places is None:
    places = [PLACES[i] for i in rng.permutation(9)[:n].tolist()]
  sizes = rng.integers(2, size=n).tolist()
  things = tuple(Thing(s, c, SIZES[z], p) for s, c, z, p in zip(shapes, colors, sizes, places))
  return Scene(things, sample_jitter(rng, n))


def some(rng: np.random.Generator, options: Sequence[str], n: int, *, distinct: bool = False) -> list[str]:
  """n of the options, all different where `distinct`."""
  if distinct:
    return [options[i] for i in rng.permutation(len(options))[:n].tolist()]
  return [options[i] for i in rng.integers(len(options), size=n).tolist()]


def sample_any(rng: np.random.Generator, n: int) -> Scene:
  """n things that differ in shape or colour."""
  while True:
    shapes, colors = some(rng, SHAPES, n), some(rng, COLORS, n)
    if len(set(zip(shapes, colors))) == n:
      return assemble(rng, shapes, colors)


def sample_distinct(rng: np.random.Generator, n: int) -> Scene:
  """n things, no two of one shape or one colour."""
  return assemble(rng, some(rng, SHAPES, n, distinct=True), some(rng, COLORS, n, distinct=True))


def sample_group(rng: np.random.Generator, n: int, *, of: str = "shape", others: int = 0,
                 same: bool | None = None) -> Scene:
  """n things alike in shape (or colour, as `of` says), first in the scene, and others unlike them.

  Args:
    rng: the source of chance.
    n: how many are alike.
    of: "shape" or "color".
    others: how many more, none of which shares the group's shape (colour).
    same: whether the group also shares the other attribute; None leaves that to chance.
  """
  alike, varied = (SHAPES, COLORS) if of == "shape" else (COLORS, SHAPES)
  order = some(rng, alike, len(alike), distinct=True)
  first = [order[0]] * n + some(rng, order[1:], others)
  same = bool(rng.integers(2)) if same is None else same
  second = [str(pick(rng, varied))] * n if same else some(rng, varied, n, distinct=n <= len(varied))
  second += some(rng, varied, others)
  return assemble(rng, first, second) if of == "shape" else assemble(rng, second, first)


RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relation(a: Thing, b: Thing) -> str | None:
  """How a stands to b where one axis clearly wins, else None."""
  (ax, ay), (bx, by) = a.cell, b.cell
  dx, dy = ax - bx, ay - by
  if abs(dx) == abs(dy):
    return None
  if abs(dx) > abs(dy):
    return "left of" if dx < 0 else "right of"
  return "above" if dy < 0 else "below"


def sample_related(rng: np.random.Generator) -> Scene:
  """Two things unlike in shape and colour of which the first stands clearly left of, right of, above or below."""
  while True:
    scene = sample_distinct(rng, 2)
    if relation(*scene.things):
      return scene


def sample_in_split(sample: Callable[[], Scene], split: str) -> Scene:
  """Calls `sample` until the scene belongs to the split."""
  while True:
    scene = sample()
    if split_of(scene) == split:
      return scene



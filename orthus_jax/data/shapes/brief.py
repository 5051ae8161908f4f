"""Brief questions about a `shapes` scene: a word or two, whose answer is a word or two. For training alone.

A picture takes some fifteen of them in the positions that six worded questions take, and each asks for one thing: find what
the word names and say what else it is, or whether there is such a thing. Models learn that on brief questions first; the
worded ones of `questions` then lean on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orthus_jax.data.shapes.language import NUMBERS, PLURALS
from orthus_jax.data.shapes.world import COLORS, PLACES, SHAPES, Scene, pick

MOST = 18

# How many of each sort are asked, of all that could be.
_NAMES, _PAIRS, _WHERE, _ABSENT, _EMPTY = 1.0, 0.7, 0.3, 0.25, 0.1
_SEVERAL, _ONE = 0.7, 0.2  # how many there are; few scenes have several alike


def ask(rng: np.random.Generator, scene: Scene) -> list[dict[str, Any]]:
  """Brief questions about a scene, no two alike, in a random order.

  Args:
    rng: the source of chance.
    scene: what to ask about.

  Returns:
    At most MOST records as those of `questions.ask`: a shape (answered by its colour), a colour (by its shape), a place (by
    both), where something is, several alike (by their number), and a colour with a shape (yes or no, by a fair coin). What
    isn't there is answered "no".
  """
  things = scene.things
  records: list[dict[str, Any]] = []

  def add(share: float, kind: str, question: str, answer: str, **more: Any) -> None:
    if rng.random() < share:
      form = "yes_no" if kind == "existence" else "open"
      records.append({"type": kind, "form": form, "question": question, "answer": answer, "pair": None, **more})

  for names, attribute, asked in ((SHAPES, "shape", "color"), (COLORS, "color", "shape")):
    for name in names:
      alike = [t for t in things if getattr(t, attribute) == name]
      if not alike:
        add(_ABSENT, "existence", name, "no")
        continue
      many = PLURALS[name] if attribute == "shape" else f"{name} things"
      add(_SEVERAL if len(alike) > 1 else _ONE, "count", many, NUMBERS[len(alike)], attribute=attribute,
          places=[t.place for t in alike])  # fmt: skip
      if len(alike) == 1:
        add(_NAMES, asked, name, getattr(alike[0], asked))
        add(_WHERE, "position", f"where is the {name}{' thing' if attribute == 'color' else ''}?", alike[0].place)
  at = {t.place: t for t in things}
  for place in PLACES:
    if place in at:
      add(_NAMES, "shape", place, f"{at[place].color} {at[place].shape}")
    else:
      add(_EMPTY, "existence", place, "no")
  pairs = list(dict.fromkeys((t.color, t.shape) for t in things))
  for color, shape in pairs:
    add(_PAIRS, "existence", f"{color} {shape}", "yes")
    for _ in range(9):  # until it is none of those there, nor asked already
      # Half of it is there; every second time the other half is too, on another thing.
      other = pick(rng, pairs) if rng.integers(2) else (pick(rng, COLORS), pick(rng, SHAPES))
      wrong = (color, other[1]) if rng.integers(2) else (other[0], shape)
      if wrong not in pairs and all(r["question"] != " ".join(wrong) for r in records):
        add(_PAIRS, "existence", " ".join(wrong), "no")
        break
  return [records[i] for i in rng.permutation(len(records))[:MOST].tolist()]

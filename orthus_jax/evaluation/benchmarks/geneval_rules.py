"""GenEval's rules (Ghosh et al., 2023): from what a detector finds in a picture to whether its prompt was followed.

Boxes are x0, y0, x1, y1 in pixels and scores are float32 throughout, as in the original, where ties and borders hang on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import PIL.Image

EXTRA = ("size", "place")  # the built-in world's prompts may ask for these; GenEval's don't
# In the order in which the original tells them.
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# Its detector's classes (COCO's, some renamed), in the order in which its rows list what was found.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
  """The original's options.

  Attributes:
    threshold: a detection's score is above it; `counting_threshold` for prompts that count.
    counting_threshold: see there.
    max_objects: of a class, the surest so many are kept.
    max_overlap: of two of a class that overlap as much (intersection over union), the less sure goes; 1 keeps all.
    position_threshold: the share of both boxes' sides that one must be off the other to be beside it.
  """

  threshold: float = 0.3
  counting_threshold: float = 0.9
  max_objects: int = 16
  max_overlap: float = 1.0
  position_threshold: float = 0.1


@dataclasses.dataclass(frozen=True)
class Detection:
  """Something that a detector found.

  Attributes:
    name: its class.
    box: x0, y0, x1, y1 in pixels.
    score: how sure the detector is, 0 to 1.
    color: one of COLORS; called where it is asked for, as a classifier is slow.
    more: what else is known, such as a size; GenEval has nothing of that kind.
  """

  name: str
  box: tuple[float, float, float, float]
  score: float = 1.0
  color: str | Callable[[], str] = ""
  more: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def box_4(self) -> np.ndarray:
    return np.asarray(self.box, np.float32)

  @property
  def said_color(self) -> str:
    return self.color() if callable(self.color) else self.color


def kept(found: Iterable[Detection], rules: Rules, *, counting: bool) -> dict[str, list[Detection]]:
  """By class what counts of a picture's detections, the surest first; other classes than CLASSES stand last."""
  by_class: dict[str, list[Detection]] = {name: [] for name in CLASSES}
  for detection in found:
    by_class.setdefault(detection.name, []).append(detection)
  least = rules.counting_threshold if counting else rules.threshold
  result = {}
  for name, all_of_it in by_class.items():
    score_D = np.asarray([d.score for d in all_of_it], np.float32)
    order = np.argsort(score_D, kind="stable")[::-1]  # of equal scores, the later one first
    left = [all_of_it[i] for i in order if score_D[i] > least][: rules.max_objects]
    chosen: list[Detection] = []
    while left:
      first, *left = left
      chosen.append(first)
      if rules.max_overlap < 1:
        left = [d for d in left if overlap(first.box_4, d.box_4) < rules.max_overlap]
    if chosen:
      result[name] = chosen
  return result


def overlap(a_4: np.ndarray, b_4: np.ndarray) -> float:
  """Intersection over union of two boxes, whose last row and column are theirs."""
  a_4, b_4 = np.asarray(a_4, np.float64), np.asarray(b_4, np.float64)

  def area(box_4: np.ndarray) -> float:
    return float(max(box_4[2] - box_4[0] + 1, 0) * max(box_4[3] - box_4[1] + 1, 0))

  shared = area(np.concatenate([np.maximum(a_4[:2], b_4[:2]), np.minimum(a_4[2:], b_4[2:])]))
  union = area(a_4) + area(b_4) - shared
  return shared / union if union else 0.0


def relations(a_4: np.ndarray, b_4: np.ndarray, threshold: float = 0.1) -> list[str]:
  """Where box a lies as seen from box b: "left of" or "right of", "above" or "below", one of each or none."""
  a_22, b_22 = a_4.astype(np.float32).reshape(2, 2), b_4.astype(np.float32).reshape(2, 2)
  offset_2 = a_22.mean(0) - b_22.mean(0)
  sides_2 = np.abs(np.diff(a_22, axis=0))[0] + np.abs(np.diff(b_22, axis=0))[0]
  reduced_2 = np.maximum(np.abs(offset_2) - threshold * sides_2, 0) * np.sign(offset_2)
  if (np.abs(reduced_2) < 1e-3).all():
    return []
  x, y = reduced_2 / np.linalg.norm(offset_2)
  across = "left of" if x < -0.5 else "right of" if x > 0.5 else ""
  down = "above" if y < -0.5 else "below" if y > 0.5 else ""
  return [r for r in (across, down) if r]


def judge(kept_by_class: Mapping[str, Sequence[Detection]], metadata: Mapping[str, Any], rules: Rules) -> tuple[bool, str]:
  """Whether a picture follows its prompt, and what is wrong with it, a line each, in the original's words.

  Args:
    kept_by_class: from `kept`.
    metadata: a line of evaluation_metadata.jsonl: `include` and `exclude`.
    rules: the options.
  """
  wrong: list[str] = []
  groups: list[Sequence[Detection] | None] = []
  for wanted in metadata.get("include", ()):
    name, count = wanted["class"], wanted["count"]
    # Only the surest count; a less sure one of the right colour doesn't help.
    found = kept_by_class.get(name, ())[:count]
    faults = _group(found, wanted, groups, rules)
    groups.append(None if faults else found)
    wrong += faults
  for barred in metadata.get("exclude", ()):
    name, count = barred["class"], barred["count"]
    if (n := len(kept_by_class.get(name, ()))) >= count:
      wrong.append(f"expected {name}<{count}, found {n}")
  return not wrong, "\n".join(wrong)


def _group(found: Sequence[Detection], wanted: Mapping[str, Any], groups: Sequence[Any], rules: Rules) -> list[str]:
  name, count = wanted["class"], wanted["count"]
  if len(found) < count:
    return [f"expected {name}>={count}, found {len(found)}"]
  if color := wanted.get("color"):
    seen = [d.said_color for d in found]
    if seen.count(color) < count:
      others = ", ".join(f"{seen.count(c)} {c}" for c in COLORS if c in seen)
      return [f"expected {color} {name}>={count}, found {seen.count(color)} {color}; and {others}"]
  for what in [e for e in EXTRA if e in wanted]:
    if (n := sum(d.more.get(what) == wanted[what] for d in found)) < count:
      return [f"expected {name} of {what} {wanted[what]}>={count}, found {n}"]
  if position := wanted.get("position"):
    relation, target = position
    if groups[target] is None:
      return [f"no target for {name} to be {relation}"]
    for a in found:
      for b in groups[target]:
        if relation not in (true := relations(a.box_4, b.box_4, rules.position_threshold)):
          return [f"expected {name} {relation} target, found {' and '.join(true)} target"]
  return []


def color_crop(image: PIL.Image.Image, box: Sequence[float], mask_HW: np.ndarray | None) -> PIL.Image.Image:
  """What the colour classifier is shown of a detection: what isn't its own is grey, cut to its box."""
  image = image.convert("RGB")
  if mask_HW is not None:
    grey = PIL.Image.new("RGB", image.size, "#999")
    image = PIL.Image.composite(image, grey, PIL.Image.fromarray(mask_HW.astype(np.uint8) * 255))
  return image.crop(tuple(float(v) for v in box))

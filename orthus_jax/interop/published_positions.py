"""What a published config.json says of rotary positions, in any of the three places where versions of it say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What may stand beside theta where positions aren't scaled; a scaling's own length changes nothing then.
_WITH_ROPE = {"partial_rotary_factor": (1,), "factor": (1,), "attention_factor": (1,), "original_max_position_embeddings": ()}


def rope_theta(said: Mapping[str, Any], default: float, problems: list[str]) -> float:
  """The base of the rotary frequencies, wherever the file gives it: transformers 5 moved it into `rope_parameters`.

  Args:
    said: the file's fields.
    default: where it is silent.
    problems: gets a line if positions are scaled or differ between layers, or the places contradict each other.
  """
  given: dict[str, Any] = {}
  for key in ("rope_parameters", "rope_scaling"):
    part = said.get(key)
    if part in (None, False, {}, [], ""):
      continue
    kind = part.get("rope_type", part.get("type")) if isinstance(part, Mapping) else part
    by_one = isinstance(part, Mapping) and kind == "linear" and part.get("factor") == 1
    if not isinstance(part, Mapping) or not (kind in (None, "default") or by_one):
      problems.append(f"config.json: {key}={part!r} is a scaling of positions, which this model doesn't have")
      continue
    others = {k: v for k, v in part.items() if k not in ("rope_type", "type", "rope_theta") and v is not None}
    wrong = [k for k, v in others.items() if k not in _WITH_ROPE or _WITH_ROPE[k] and v not in _WITH_ROPE[k]]
    if wrong:
      problems.append(
          f"config.json: {key}.{wrong[0]}={others[wrong[0]]!r} isn't supported: all layers have the same positions here,"
          f" of {key}.rope_theta alone"
      )
    given[f"{key}.rope_theta"] = part.get("rope_theta")
  given["rope_theta"] = said.get("rope_theta")
  given = {place: value for place, value in given.items() if value is not None}
  for place, value in given.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
      problems.append(f"config.json: {place}={value!r} must be a number above 0")
      return default
  if len(set(given.values())) > 1:
    each = " and ".join(f"{place}={value}" for place, value in given.items())
    problems.append(f"config.json: {each} contradict each other: remove the wrong one")
  return float(next(iter(given.values()), default))

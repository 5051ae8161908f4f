"""Which numbers a field may hold, said where it is declared: Annotated[int, Range(1, 8)], or one of the names below.

Bounds keep arithmetic finite in float32 and sizes within int32; they are wider than anybody's use.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

from orthus_jax.errors import BadRequest


@dataclasses.dataclass(frozen=True)
class Range:
  """From `low` to `high`.

  Attributes:
    above, below: whether `low`, or `high`, is left out itself.
    also: single values beside the range.
    note: what a value stands for, told where one is refused: "0 turns it off".
  """

  low: float
  high: float
  above: bool = False
  below: bool = False
  also: tuple[float, ...] = ()
  note: str = ""

  def __contains__(self, value: float) -> bool:
    if value in self.also:
      return True
    # NaN compares as False with everything.
    return (value > self.low if self.above else value >= self.low) and (
        value < self.high if self.below else value <= self.high
    )

  def __str__(self) -> str:
    low = "above" if self.above else "at least"
    high = "below" if self.below else "at most"
    also = "".join(f", or {v}" for v in self.also)
    return f"{low} {_number(self.low)} and {high} {_number(self.high)}{also}" + (f"; {self.note}" if self.note else "")


_HINTS: dict[type, dict[str, Any]] = {}  # reading them takes a while
MAX_INT = 2**31 - 1  # of int32, which jax counts in
Count = Annotated[int, Range(1, MAX_INT)]
Whole = Annotated[int, Range(0, MAX_INT)]
Width = Annotated[int, Range(1, 2**20)]
Layers = Annotated[int, Range(1, 4096)]
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e6)]
Decay = Annotated[float, Range(0, 0.999999, note="in float32, what is nearer to 1 is 1")]
SEED = Range(0, 2**32 - 1)  # numpy takes none below 0, and jax drops what lies beyond 32 bits
Seed = Annotated[int, SEED]
Sometimes = Annotated[int, Range(0, MAX_INT, note="0 turns it off")]
Chunk = Annotated[int, Range(0, MAX_INT, note="0 means whole rows")]


def check(section: Any, where: str) -> None:
  """Checks a config's own numbers, in lists too.

  Raises:
    BadRequest: on one out of its field's range.
  """
  for name, hint in hints(type(section)).items():
    value = getattr(section, name)
    for found, number in numbers(hint, value):
      if found is not None and number not in found:
        what = f"{where}.{name}={shown(value)}"
        raise BadRequest(f"{what} must be {found}" if number is value else f"{what}: {shown(number)} must be {found}")


def of(section: type, field: str) -> tuple[type, Range]:
  """(int or float, its range) of a field that holds one number."""
  kind, *marks = typing.get_args(hints(section)[field])
  return kind, next(m for m in marks if isinstance(m, Range))


def numbers(hint: Any, value: Any) -> typing.Iterator[tuple[Range | None, Any]]:
  """Each number of a field's value with the range that its type declares for it."""
  if typing.get_origin(hint) is Annotated:
    base, *marks = typing.get_args(hint)
    if base in (int, float):
      yield next((m for m in marks if isinstance(m, Range)), None), value
  elif hint in (int, float):
    yield None, value
  elif typing.get_origin(hint) is tuple:
    kinds = typing.get_args(hint)
    repeated = len(kinds) == 2 and kinds[1] is Ellipsis
    for kind, item in zip(kinds[:1] * len(value) if repeated else kinds, value):
      yield from numbers(kind, item)


def hints(section: type) -> dict[str, Any]:
  """A config class's fields with their types and what these declare."""
  if section not in _HINTS:
    _HINTS[section] = typing.get_type_hints(section, include_extras=True)
  return _HINTS[section]


def shown(value: Any) -> str:
  """A value for a message: numbers of more digits than anyone reads are cut short."""
  text = _number(value) if isinstance(value, int) else repr(value)
  return text if len(text) <= 120 else f"{text[:100]}…"


def _number(value: float) -> str:
  if isinstance(value, int) and value.bit_length() > 400:  # Python refuses to spell thousands of digits
    return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1} or more"
  return f"{value:g}" if isinstance(value, float) and value.is_integer() else repr(value)

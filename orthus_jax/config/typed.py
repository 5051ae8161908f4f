"""Nested mappings to frozen dataclasses and back, with every name and type checked."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import difflib
import math
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

from orthus_jax.config import ranges
from orthus_jax.config.ranges import shown
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path

PATH = object()  # marks a field
UserPath = Annotated[str, PATH]  # a path, whose ~ is expanded as it is read


def require(condition: bool, message: str) -> None:
  """Raises BadRequest with `message` unless `condition` holds."""
  if not condition:
    raise BadRequest(message)


def is_text(text: str) -> bool:
  """Whether it can be written as UTF-8: JSON and command lines can bring half a character, or bytes that are none."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
  """Builds a config class from nested mappings (a ConfigDict among them).

  Raises:
    BadRequest: if it is no mapping, on an unknown field (naming the nearest), a wrong type, or values that exclude each other.
  """
  if not isinstance(values, Mapping) and not hasattr(values, "items"):
    raise BadRequest(f"{where}: expected fields, got {shown(values)}")
  hints = ranges.hints(cls)
  unknown = [k for k in values if k not in hints]
  if unknown:
    near = difflib.get_close_matches(unknown[0], hints, n=1, cutoff=0.0)
    raise BadRequest(f"{where} has no field {unknown[0]!r}; the nearest is {near[0]!r}")
  return cls(**{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
  """Checks `value` against a type hint; a whole number may stand for a float, a list for a tuple."""
  origin = typing.get_origin(hint)
  if origin is Annotated:
    kind, *marks = typing.get_args(hint)
    value = _convert(kind, value, where)
    return user_path(value) if PATH in marks else value
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    return from_dict(hint, value, where=where)
  if origin is Literal:
    options = typing.get_args(hint)
    if value not in options:
      raise BadRequest(f"{where}={shown(value)}: choose one of {', '.join(map(str, options))}")
    return value
  if origin is tuple:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
      raise BadRequest(f"{where}={shown(value)}: expected a list")
    args = typing.get_args(hint)
    items = list(value)
    if len(args) == 2 and args[1] is Ellipsis:
      return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if len(items) != len(args):
      raise BadRequest(f"{where}={shown(value)}: expected {len(args)} items")
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, items)))
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) < 1e300 else float("inf")
  if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
    raise BadRequest(f"{where}={shown(value)}: expected {hint.__name__}, got {type(value).__name__}")
  if hint is float and not math.isfinite(value):
    raise BadRequest(f"{where}={value} is not a finite number")
  return value


def to_dict(config: Any) -> Any:
  """Nested plain dicts and lists, ready for JSON; `from_dict` reads them back."""
  if dataclasses.is_dataclass(config):
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, tuple):
    return [to_dict(v) for v in config]
  return config

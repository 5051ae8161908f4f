"""What a body asks for: fields read with their kinds and ranges, those of OpenAI's API and our own sampling's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
import difflib
import secrets
from typing import Any

from orthus_jax.config import SamplingConfig
from orthus_jax.config.sampling import with_fields
from orthus_jax.errors import BadRequest
from orthus_jax.serving.errors import ApiError

# What the command line has too; how weights and cache are kept is settled when the server starts.
SAMPLING = frozenset(f.name for f in dataclasses.fields(SamplingConfig)) - {"weights", "cache", "solver_loop"}
# Nothing of the answer hangs on these.
IGNORED = frozenset({
    "user", "metadata", "store", "stream_options", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "moderation", "output_compression", "quality", "style", "input_fidelity",
})  # fmt: skip
# Served at these values alone, which ask for nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None), "logprobs": (False, None), "top_logprobs": (0, None),
    "tools": ([], None), "tool_choice": ("none", "auto", None), "logit_bias": ({}, None),
    "response_format": ({"type": "text"}, None),
    "background": ("auto", "opaque", None), "output_format": ("png", None),
    "modalities": (["text"], ["text", "image"], ["image", "text"], None),
}  # fmt: skip
_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", tuple: "a list",
    dict: "an object",
}  # fmt: skip
_ENDLESS = 1e300


def check_names(body: Mapping[str, Any], known: Collection[str]) -> None:
  """Refuses fields that mean nothing here, naming the nearest.

  Raises:
    ApiError: 400.
  """
  allowed = {*known, *SAMPLING, *IGNORED, *_ONLY}
  for name, value in body.items():
    if name not in allowed:
      near = difflib.get_close_matches(name, sorted({*known, *SAMPLING}), 1)
      raise ApiError(400, f"unknown field {name!r}{f': did you mean {near[0]!r}?' if near else ''}", param=name)
    if name in _ONLY and name not in known and value not in _ONLY[name]:
      raise ApiError(400, f"{name}={value!r} isn't served: leave it out", param=name)


def value(
    body: Mapping[str, Any], name: str, kind: type, default: Any, *, low: float = -_ENDLESS, high: float = _ENDLESS
) -> Any:
  """A field of the body; numbers may come as text, as forms have them.

  Raises:
    ApiError: 400, if it is of another kind or out of range.
  """
  found = body.get(name)
  if found is None:
    return default
  if kind in (int, float) and isinstance(found, str):
    try:
      found = kind(found)
    except ValueError:
      raise ApiError(400, f"{name}={found!r} isn't a number", param=name) from None
  if kind is bool and found in ("true", "false"):
    found = found == "true"
  right = isinstance(found, int | float) if kind is float else isinstance(found, kind)
  if not right or (kind is not bool and isinstance(found, bool)):
    raise ApiError(400, f"{name}={found!r} must be {_WORDS[kind]}", param=name)
  if kind in (int, float) and not low <= found <= high:
    allowed = f"{low} or more" if high == _ENDLESS else f"from {low} to {high}"
    raise ApiError(400, f"{name}={found} must be {allowed}", param=name)
  return kind(found)


def seed(body: Mapping[str, Any], n: int) -> int:
  """The seed of the first of n answers, whose others follow it; another each time where the body has none.

  Raises:
    ApiError: 400, if one of them has more than 32 bits.
  """
  most = 2**31 - n
  found = value(body, "seed", int, None, low=-(2**31), high=most)
  return secrets.randbelow(most + 1) if found is None else found


def sampling(base: SamplingConfig, body: Mapping[str, Any]) -> SamplingConfig:
  """The sampling that a body asks for.

  Args:
    base: the model's own.
    body: `max_tokens` and `max_completion_tokens` are OpenAI's names of `max_new_tokens`.

  Raises:
    ApiError: 400, if a field has no such value.
  """
  given: dict[str, Any] = {}
  for name in SAMPLING & body.keys():
    if body[name] is not None:
      kind = type(getattr(base, name))
      found = tuple(body[name]) if kind is tuple and isinstance(body[name], list) else body[name]
      given[name] = value({name: found}, name, kind, None)
  for name in ("max_tokens", "max_completion_tokens"):
    if (most := value(body, name, int, None, low=1)) is not None:
      given["max_new_tokens"] = most
  try:
    return with_fields(base, given)
  except BadRequest as e:
    raise ApiError(400, str(e)) from e

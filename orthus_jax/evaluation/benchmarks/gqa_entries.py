"""What is read of the entries of GQA's files; their other fields are passed over."""

from __future__ import annotations

from typing import Any

import msgspec


class _Step(msgspec.Struct):
  operation: Any
  argument: Any


class _Types(msgspec.Struct):
  detailed: str
  semantic: Any
  structural: Any


class _Groups(msgspec.Struct):
  all: Any = msgspec.field(name="global")


class Question(msgspec.Struct):
  """What is read of a question."""

  answer: Any
  types: _Types
  semantic: list[_Step]
  isBalanced: Any
  question: str
  groups: _Groups
  imageId: Any = None
  entailed: list[Any] = []
  annotations: Any = None


class Prediction(msgspec.Struct):
  """A model's answer."""

  questionId: str | int
  prediction: str


class Choices(msgspec.Struct):
  """Answers that are possible, and those that make sense."""

  valid: list[Any]
  plausible: list[Any]

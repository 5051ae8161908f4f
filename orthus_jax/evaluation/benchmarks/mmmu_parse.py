"""What MMMU's tool reads in a response, and when it takes that for right."""

from __future__ import annotations

from collections.abc import Sequence
import random
import re

_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # with an exponent
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # plain
)


def draws() -> random.Random:
  """The one generator from which the tool draws where it reads nothing, over all subjects in one sequence."""
  return random.Random(42)


def choice(response: str, choices: Sequence[str], options: dict[str, str], drawn: random.Random) -> tuple[str, bool]:
  """The option that a response names, the last of several; whether it had to be drawn.

  Args:
    response: of the model.
    choices: the options' letters.
    options: their texts, by letter.
    drawn: `draws()`, one for all subjects.
  """
  for mark in ",.!?;:'":
    response = response.strip(mark)
  response = f" {response} "
  for form in ("({})", " {} "):
    if found := [c for c in choices if form.format(c) in response]:
      return max(found, key=lambda c: response.rfind(form.format(c))), False
  lower = response.lower()
  if len(response.split()) > 5 and (found := [c for c, text in options.items() if text.lower() in lower]):
    return max(found, key=lambda c: lower.rfind(options[c].lower())), False
  return drawn.choice(choices), True


def normalised(text: str) -> list[str | float]:
  """A number rounded to two places; else the text in lower case, one letter with a blank at either side."""
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except (ValueError, OverflowError):
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_answer(response: str) -> list[str | float]:
  """What a response to an open question may mean: the ends of its lines behind the last cue, and the numbers in them."""
  response = response.strip().strip(".").lower()
  lines = response.split("\n")  # the tool splits at sentences too, by a capital letter, of which none is left
  tails = []
  for i, line in enumerate(lines):
    cues = (*_CUES, "=") if i == len(lines) - 1 else _CUES
    found = [line.rpartition(cue)[2].strip() for cue in cues if cue in line]
    tail = ""
    for text in found:  # the shortest, but an empty one gives way to the next
      if not tail or len(text) < len(tail):
        tail = text
    if tail and tail not in _TRIVIAL:
      tails.append(tail)
  tails = tails or [response]
  read: list[str | float] = []
  for text in (*tails, *(n for tail in tails for pattern in _NUMBERS for n in pattern.findall(tail))):
    read += normalised(text)
  return list(dict.fromkeys(read))


def open_is_right(gold: str | list[str], read: Sequence[str | float]) -> bool:
  """Whether any number read is a gold one, or any text read holds a gold text."""
  wanted = [w for g in (gold if isinstance(gold, list) else [gold]) for w in normalised(g)]
  texts = [w for w in wanted if isinstance(w, str)]
  return any(any(w in r for w in texts) if isinstance(r, str) else r in wanted for r in read)

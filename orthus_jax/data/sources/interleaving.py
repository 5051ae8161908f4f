"""Documents of text and pictures in turn, of which everything is to be learnt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.layout import Picture
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest


def interleave(parts: Iterable[str | Path | None], between: str) -> tuple[Text | Picture, ...]:
  """Segments of texts and files of pictures.

  Args:
    parts: in reading order; blank texts and what is None are left out.
    between: what joins texts with no picture between them, whose words would run into each other.

  Raises:
    BadRequest: there is no text or no picture among them.
  """
  segments: list[Text | Picture] = []
  for part in parts:
    if isinstance(part, Path):
      segments.append(Picture(part, learn=True))
    elif part and part.strip():
      check_text(part)
      if segments and isinstance(last := segments[-1], Text):
        segments[-1] = Text(last.text + between + part, learn=True)
      else:
        segments.append(Text(part, learn=True))
  if not any(isinstance(s, Picture) for s in segments):
    raise BadRequest("it has no picture that is there")
  if not any(isinstance(s, Text) for s in segments):
    raise BadRequest("it has no text")
  return tuple(segments)

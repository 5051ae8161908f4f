"""Long documents, cut into consecutive ones that a row has room for."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

from orthus_jax.data.documents import Document, Image, Segment, Text

_CUT = ("interleaved", "story", "planned_story")


def windows(document: Document, images: int) -> Iterator[Document]:
  """A document as consecutive ones of few pictures.

  It is cut behind a picture; what stands ahead of a later one's first picture is given, so that it too starts from a prompt.
  One whose pictures are all given, with what is learnt behind them, stays whole.

  Args:
    document: cut where its kind is "interleaved", "story" or "planned_story".
    images: pictures that one holds at most; 0: any number.
  """
  if not images or len(document.images) <= images or document.kind not in _CUT:
    yield document
    return
  *_, last_picture = (i for i, s in enumerate(document.segments) if isinstance(s, Image))
  if not any(s.learn for s in document.segments[: last_picture + 1]):  # what is learnt is of all its pictures
    yield document
    return
  pieces: list[list[Segment]] = [[]]
  for segment in document.segments:
    if isinstance(segment, Image) and sum(isinstance(s, Image) for s in pieces[-1]) == images:
      last = max(i for i, s in enumerate(pieces[-1]) if isinstance(s, Image))
      pieces.append(pieces[-1][last + 1 :])
      del pieces[-2][last + 1 :]
    pieces[-1].append(segment)
  for number, piece in enumerate(pieces, 1):
    if number > 1:
      first = next(i for i, s in enumerate(piece) if isinstance(s, Image))
      given = [dataclasses.replace(s, learn=False) if isinstance(s, Text) else s for s in piece[:first]]
      piece[:first] = given
    yield dataclasses.replace(document, segments=tuple(piece), id=f"{document.id}/{number}")

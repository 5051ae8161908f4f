"""From what the running batch made to what is told of each request: words as they come, pictures, previews, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.inference.responses import Decoder, Drawn, Event, Finished, Preview, Response, TextPiece, preview
from orthus_jax.inference.scheduler import Progress


@dataclasses.dataclass
class _Told:
  """A request on the way.

  Attributes:
    document: its prompt.
    previews: whether its unfinished pictures are told of.
    response: what has come of it.
    drawn: its finished pictures.
    shown: rows of patches of the unfinished one that were shown.
  """

  document: Document
  previews: bool
  response: Response
  drawn: list[np.ndarray] = dataclasses.field(default_factory=list)
  shown: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Undrawn:
  """A picture that is to be decoded: the features of all its patches, or of the first ones."""

  index: int
  picture: int
  features_nC: np.ndarray


class Telling:
  """Gathers responses.

  Args:
    tokenizer: of the texts.
    patches: P, of a picture.
    decode: features [I, P, C] to pictures.
    preview_rows: show unfinished pictures every so many rows of patches; 0 shows none.
  """

  def __init__(
      self, tokenizer: Decoder, *, patches: int, decode: Callable[[Sequence[np.ndarray]], np.ndarray], preview_rows: int = 0
  ):
    self._tokenizer, self._patches, self._decode, self._rows = tokenizer, patches, decode, preview_rows
    self._told: dict[int, _Told] = {}

  def begin(self, index: int, document: Document, *, previews: bool = True) -> None:
    """Takes on request `index`, whose prompt is the document."""
    self._told[index] = _Told(document, previews, Response(self._tokenizer, self._patches))

  def forget(self, index: int) -> None:
    """Drops a request that is given up."""
    self._told.pop(index, None)

  def tell(self, made: Sequence[Progress]) -> list[Event]:
    """What a call has brought, each request's in its order; all pictures are decoded together."""
    found = [part for progress in made for part in self._parts(progress)]
    undrawn = [self._whole(part.features_nC) for part in found if isinstance(part, _Undrawn)]
    pixels = iter(self._decode(undrawn) if undrawn else ())
    events: list[Event] = []
    for part in found:
      if isinstance(part, TextPiece):
        events.append(part)
      elif (n := len(part.features_nC)) < self._patches:
        events.append(Preview(part.index, part.picture, n, preview(next(pixels), n, self._patches)))
      else:
        self._told[part.index].drawn.append(drawn := next(pixels))
        events.append(Drawn(part.index, part.picture, drawn))
    return events + [self._end(progress.ticket) for progress in made if progress.done]

  def _parts(self, made: Progress) -> Iterator[TextPiece | _Undrawn]:
    index, told = made.ticket, self._told[made.ticket]
    response, side = told.response, round(self._patches**0.5)
    is_patch_N = made.tokens_N == self._tokenizer.image
    ends = np.flatnonzero(is_patch_N[:-1] & ~is_patch_N[1:]) + 1  # text behind a picture is told behind it
    pictures = response.pictures
    for tokens_n, features_nC in zip(np.split(made.tokens_N, ends), np.split(made.features_NC, ends)):
      if text := response.add(tokens_n, features_nC):
        yield TextPiece(index, text)
      for features_PC in [x for x in response.texts_and_pictures if not isinstance(x, str)][pictures:]:
        yield _Undrawn(index, pictures, features_PC)
        pictures, told.shown = pictures + 1, 0
    if made.done and (text := response.end()):
      yield TextPiece(index, text)
    features_nC = response.unfinished
    if features_nC is not None and told.previews and self._rows and len(features_nC) // side >= told.shown + self._rows:
      told.shown = len(features_nC) // side
      yield _Undrawn(index, pictures, features_nC)

  def _end(self, index: int) -> Finished:
    told = self._told.pop(index)
    drawn = iter(told.drawn)
    segments = tuple(
        Text(x, learn=True) if isinstance(x, str) else Image(next(drawn), learn=True)
        for x in told.response.texts_and_pictures
    )
    return Finished(index, dataclasses.replace(told.document, segments=(*told.document.segments, *segments)))

  def _whole(self, features_nC: np.ndarray) -> np.ndarray:
    """All P patches; the decoder is given the mean of those that are there for the others."""
    rest = np.repeat(features_nC.mean(axis=0, keepdims=True), self._patches - len(features_nC), axis=0)
    return np.concatenate([features_nC, rest])

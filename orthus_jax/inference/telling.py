"""From what the running batch made to what is told of each request: words as they come, previews, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.inference.responses import Decoder, Drawn, Event, Finished, Preview, Response, TextPiece, preview
from orthus_jax.inference.scheduler import Progress


class Telling:
  """Gathers responses.

  Args:
    tokenizer: of the texts.
    patches: P, of a picture.
    decode: features [I, P, C] to pictures.
    preview_rows: show unfinished pictures every so many rows of patches; 0 shows none.
    at_once: tell of each picture when it is finished, and not at the response's end alone.
  """

  def __init__(
      self, tokenizer: Decoder, *, patches: int, decode: Callable[[Sequence[np.ndarray]], np.ndarray], preview_rows: int = 0,
      at_once: bool = False,
  ):  # fmt: skip
    self._at_once = at_once
    self._drawn: dict[int, list[np.ndarray]] = {}  # request → its pictures that were told of
    self._tokenizer, self._patches, self._decode, self._rows = tokenizer, patches, decode, preview_rows
    self._responses: dict[int, Response] = {}
    self._shown: dict[int, int] = {}  # request → rows of its unfinished picture that were shown
    self._ended: list[tuple[int, Document]] = []

  def add(self, index: int, document: Document, made: Progress, *, previews: bool = True) -> Iterator[Event]:
    """Tells what has come of request `index`, whose prompt is the document; its end waits for `ended`."""
    response = self._responses.setdefault(index, Response(self._tokenizer, self._patches))
    is_patch_N = made.tokens_N == self._tokenizer.image
    # Text behind a picture is told behind it.
    ends = np.flatnonzero(is_patch_N[:-1] & ~is_patch_N[1:]) + 1 if self._at_once else []
    for tokens_n, features_nC in zip(np.split(made.tokens_N, ends), np.split(made.features_NC, ends)):
      if text := response.add(tokens_n, features_nC):
        yield TextPiece(index, text)
      if self._at_once:
        yield from self._new_pictures(index, response)
    if made.done:
      if text := response.end():
        yield TextPiece(index, text)
      self._ended.append((index, document))
    features_nC = response.unfinished
    side = round(self._patches**0.5)
    if features_nC is None:
      self._shown.pop(index, None)
    elif previews and self._rows and len(features_nC) // side >= self._shown.get(index, 0) + self._rows:
      self._shown[index] = len(features_nC) // side
      yield Preview(index, response.pictures, len(features_nC), self._preview(features_nC))

  def ended(self) -> Iterator[Finished]:
    """The ends of all that have ended since, whose pictures are decoded together."""
    ended, self._ended = self._ended, []
    if self._at_once:
      pictures = iter([pixels for i, _ in ended for pixels in self._drawn.pop(i, ())])
    else:
      drawn = [x for i, _ in ended for x in self._responses[i].texts_and_pictures if not isinstance(x, str)]
      pictures = iter(self._decode(drawn)) if drawn else iter(())
    for i, document in ended:
      segments = tuple(
          Text(x, learn=True) if isinstance(x, str) else Image(next(pictures), learn=True)
          for x in self._responses.pop(i).texts_and_pictures
      )
      yield Finished(i, dataclasses.replace(document, segments=(*document.segments, *segments)))

  def forget(self, index: int) -> None:
    """Drops a request that is given up."""
    self._responses.pop(index, None)
    self._drawn.pop(index, None)
    self._shown.pop(index, None)
    self._ended = [(i, d) for i, d in self._ended if i != index]

  def _new_pictures(self, index: int, response: Response) -> Iterator[Drawn]:
    told = self._drawn.setdefault(index, [])
    if response.pictures > len(told):
      features = [x for x in response.texts_and_pictures if not isinstance(x, str)][len(told) :]
      for pixels in self._decode(features):
        told.append(pixels)
        yield Drawn(index, len(told) - 1, pixels)

  def _preview(self, features_nC: np.ndarray) -> np.ndarray:
    """A picture of the patches that are there; the decoder is given their mean for the others."""
    P = self._patches
    rest = np.repeat(features_nC.mean(axis=0, keepdims=True), P - len(features_nC), axis=0)
    return preview(self._decode([np.concatenate([features_nC, rest])])[0], len(features_nC), P)

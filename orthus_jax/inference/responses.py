"""From generated positions to segments, and to what can be shown of them on the way."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from orthus_jax.data.documents import Document


class Decoder(Protocol):
  """What a tokenizer does here."""

  image: int

  def decode(self, ids: list[int]) -> str:
    """Text of token ids, special tokens left out."""


@dataclasses.dataclass(frozen=True)
class TextPiece:
  """Text that has come since the last piece of request `index`."""

  index: int
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
  """A picture that isn't finished: uint8 `pixels`, grey where there is nothing yet; `done` of its patches are there."""

  index: int
  picture: int
  done: int
  pixels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """Picture number `picture` of request `index` is finished: uint8 `pixels`; the text that came before it has been told."""

  index: int
  picture: int
  pixels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
  """The document with its response."""

  index: int
  document: Document


@dataclasses.dataclass(frozen=True)
class Failed:
  """A request that can't be served, and why."""

  index: int
  reason: str


Event = TextPiece | Preview | Drawn | Finished | Failed


class Response:
  """What has come of one request so far.

  Args:
    decoder: of text.
    patches: P, of a picture.
  """

  def __init__(self, decoder: Decoder, patches: int):
    self._decoder, self._patches = decoder, patches
    self._tokens: list[int] = []  # of the text that is going on
    self._told = 0  # its characters that were handed out
    self._drawn: list[np.ndarray] = []  # of the picture that is going on
    self.texts_and_pictures: list[str | np.ndarray] = []  # features [P, C] for a picture

  def add(self, tokens_N: np.ndarray, features_NC: np.ndarray) -> str:
    """Takes new positions; returns the text among them that is whole."""
    fresh = ""
    for token, feature_C in zip(tokens_N, features_NC):
      if token == self._decoder.image:
        fresh += self._end_text()
        self._drawn.append(feature_C)
        if len(self._drawn) == self._patches:
          self.texts_and_pictures.append(np.stack(self._drawn))
          self._drawn = []
      else:
        self._tokens.append(int(token))
    return fresh + self._fresh()

  def _fresh(self, *, last: bool = False) -> str:
    text = self._decoder.decode(self._tokens) if self._tokens else ""
    # A character whose bytes haven't all come is shown as a replacement; it and what follows wait.
    whole = len(text) if last else len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    piece, self._told = text[self._told : whole], max(self._told, whole)
    return piece

  def _end_text(self) -> str:
    piece = self._fresh(last=True)
    text = self._decoder.decode(self._tokens).strip() if self._tokens else ""
    if text:
      self.texts_and_pictures.append(text)
    self._tokens, self._told = [], 0
    return piece

  def end(self) -> str:
    """Closes the last text; a picture that was cut off is dropped. Returns text that was held back."""
    self._drawn = []
    return self._end_text()

  @property
  def unfinished(self) -> np.ndarray | None:
    """The patches [n, C] of the picture that is being drawn."""
    return np.stack(self._drawn) if self._drawn else None

  @property
  def pictures(self) -> int:
    """Finished pictures."""
    return sum(not isinstance(x, str) for x in self.texts_and_pictures)


def preview(pixels: np.ndarray, done: int, patches: int) -> np.ndarray:
  """A picture of which `done` patches are drawn, row by row, with grey in the place of the others.

  Args:
    pixels: uint8 [R, R, 3].
    done: patches drawn.
    patches: of the whole picture, a square.
  """
  side = round(patches**0.5)
  step = pixels.shape[0] // side
  shown = np.full_like(pixels, 128)
  rows, rest = divmod(done, side)
  shown[: rows * step] = pixels[: rows * step]
  shown[rows * step : (rows + 1) * step, : rest * step] = pixels[rows * step : (rows + 1) * step, : rest * step]
  return shown

"""A Document as one sequence of positions: the same function for training and for generation.

    <s> given … [SEP] learnt … [SEP] given … [SEP] learnt … [SEP]

A separator stands wherever a prompt ends or a response ends; the latter is learnt, as it is how a model says that it is
done. An image is BOI, one position per patch, EOI. The state at BOI predicts patch 1, the state at the last patch
predicts EOI (by the LM head).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.errors import BadRequest


class Tokenizer(Protocol):
  """What laying documents out and keeping them needs of a text tokenizer."""

  bos: int
  pad: int
  sep: int
  boi: int
  eoi: int
  image: int

  def encode(self, text: str) -> list[int]:
    """Token ids of plain text, without special tokens."""

  def digest(self) -> str:
    """Tells tokenizers of other content apart."""

  def save(self, directory: str | os.PathLike) -> Path:
    """Writes it into a directory, made if absent; returns the file's path."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
  """Positions of one document. Axes: T positions, I images of the document.

  Attributes:
    tokens_T: int32 ids; image positions hold the `<image>` placeholder.
    learnt_length_T: int32, 0 but where the LM head is to predict this very token (from the position before): there, the
      positions of the segment it belongs to, closing separator and patches included.
    image_T: int32, which image of the document stands here, -1 for none.
    starts_I: int32, where each image's BOI stands.
    learn_I: bool, whether the image head is to learn the image.
    images: the document's pictures, in order.
  """

  tokens_T: np.ndarray
  learnt_length_T: np.ndarray
  image_T: np.ndarray
  starts_I: np.ndarray
  learn_I: np.ndarray
  images: tuple[Image, ...]

  def __len__(self) -> int:
    return len(self.tokens_T)

  @property
  def size(self) -> tuple[int, int, int]:
    """Positions, images, and images that are learnt: what a row must have room for."""
    return len(self), len(self.learn_I), int(self.learn_I.sum())

  @property
  def learn_T(self) -> np.ndarray:
    """Bool, True where the LM head is to predict this very token."""
    return self.learnt_length_T > 0


def layout(document: Document, tokenizer: Tokenizer, *, patches: int, respond: bool = False) -> Sequence:
  """Lays a document out.

  Args:
    document: at least one segment.
    tokenizer: the text tokenizer.
    patches: P, positions per image.
    respond: close the prompt with a separator, so that a response can follow; for generation.

  Raises:
    BadRequest: if the document is empty, or a text to be learnt or given is.
  """
  if not document.segments:
    raise BadRequest(f"{document.name} is empty: it needs at least one text or image")
  runs: list[np.ndarray] = []  # ids, each with what follows: whether they are learnt, their image or -1, their segment or -1
  facts: list[tuple[bool, int, int]] = []
  starts: list[int] = []
  images: list[Image] = []
  length = 0

  def put(ids: list[int] | np.ndarray, learnt: bool, number: int, index: int = -1) -> None:
    nonlocal length
    runs.append(np.asarray(ids, np.int32))
    facts.append((learnt, index, number))
    length += len(ids)

  put([tokenizer.bos], False, -1)
  patches_P = np.full(patches, tokenizer.image, np.int32)
  previous: Text | Image | None = None
  for n, segment in enumerate(document.segments):
    if previous is not None and previous.learn != segment.learn:
      put([tokenizer.sep], previous.learn, n - 1)
    if isinstance(segment, Text):
      ids = tokenizer.encode(segment.text)
      # Spaces around a given picture belong to a prompt ("<image> <image> compare them"); elsewhere a text is missing.
      beside = document.segments[max(n - 1, 0) : n + 2]
      spaces = not segment.learn and any(isinstance(s, Image) and not s.learn for s in beside)
      if not ids or not (segment.text.strip() or spaces):
        raise BadRequest(f"{document.name} holds an empty text; leave the segment out or fill it")
      put(ids, segment.learn, n)
    else:
      starts.append(length)
      put([tokenizer.boi], segment.learn, n)
      put(patches_P, False, n, len(images))
      put([tokenizer.eoi], segment.learn, n)
      images.append(segment)
    previous = segment
  learnt = previous is not None and previous.learn
  if respond or learnt:
    put([tokenizer.sep], learnt, n)
  lengths = [len(r) for r in runs]
  learn_T, image_T, owner_T = (np.repeat(np.asarray(f, np.int32), lengths) for f in zip(*facts))
  positions_N = np.bincount(owner_T + 1)
  return Sequence(
      tokens_T=np.concatenate(runs),
      learnt_length_T=np.where(learn_T, positions_N[owner_T + 1], 0).astype(np.int32),
      image_T=image_T,
      starts_I=np.asarray(starts, np.int32),
      learn_I=np.asarray([i.learn for i in images], bool),
      images=tuple(images),
  )


def with_patches(s: Sequence, there: int, patches: int) -> Sequence:
  """A sequence laid out anew for pictures of another number of patches: just what `layout` would have made of its document.

  Args:
    s: laid out with `there` positions an image.
    there: the number that it has.
    patches: the number that it is to have.
  """
  if there == patches:
    return s
  learnt_T, more = s.learnt_length_T.copy(), patches - there
  for start in s.starts_I:
    if length := learnt_T[start]:  # of its segment: BOI, patches, EOI and perhaps a separator
      learnt_T[[start, *range(start + there + 1, start + length)]] += more
  # Each image's first patch stands for all of them; the others go.
  first_T = (s.image_T >= 0) & (np.diff(s.image_T, prepend=-1) != 0)
  count_T = np.where(s.image_T < 0, 1, np.where(first_T, patches, 0))
  tokens_T, learnt_T, image_T = (np.repeat(x, count_T) for x in (s.tokens_T, learnt_T, s.image_T))
  starts_I = s.starts_I + more * np.arange(len(s.starts_I), dtype=np.int32)
  return Sequence(tokens_T, learnt_T, image_T, starts_I, s.learn_I, s.images)


def turns(s: Sequence, *, patches: int) -> np.ndarray:
  """Which turn of a document about given pictures each position belongs to.

  Args:
    s: of a document.
    patches: P, positions per image.

  Returns:
    int32 [T]: 0 for what all turns share, the pictures with what stands before them, then 1, 2, …; a turn is a prompt and its
    response. All zeros where there is one turn, or a picture that is learnt or stands further on.
  """
  turn_T = np.zeros(len(s), np.int32)
  if not len(s.starts_I) or s.learn_I.any():
    return turn_T
  first, learn_T = s.starts_I[-1] + patches + 2, s.learn_T
  if first >= len(s) or learn_T[:first].any():
    return turn_T
  begins_T = learn_T[first - 1 : -1] & ~learn_T[first:]
  if begins_T.any():
    turn_T[first:] = 1 + np.cumsum(begins_T)
  return turn_T


def unconditional(document: Document, prompt: str, *, keep_images: bool = False) -> Document:
  """The document with its prompt replaced by the unconditional one: what guidance compares with.

  Words that plan a picture go with the prompt that they follow from.

  Args:
    document: its leading given segments are the prompt.
    prompt: the unconditional prompt's text.
    keep_images: keep the prompt's pictures and replace its words alone (editing).
  """
  given, response = document.prompt().segments, document.response()
  kept = tuple(s for s in given if isinstance(s, Image)) if keep_images else ()
  drawn = response.images if is_planned(response) else response.segments
  return dataclasses.replace(document, segments=(*kept, Text(prompt), *drawn))


def is_planned(response: Document) -> bool:
  """Whether a response is words, which say what is to be drawn, then one picture."""
  *before, last = response.segments or (None,)
  return isinstance(last, Image) and bool(before) and all(isinstance(s, Text) for s in before)

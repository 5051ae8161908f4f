"""The one type that everything passes around: a Document of text and image segments.

Sources yield Documents, the generator takes one and returns one, scorers read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np

from orthus_jax.errors import BadRequest

_AT_ONCE = 128  # documents


@dataclasses.dataclass(frozen=True)
class Text:
  """A run of text.

  Attributes:
    text: the characters, without special tokens.
    learn: False where the text is given (a prompt), True where a model is to produce it.
  """

  text: str
  learn: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
  """A picture.

  Attributes:
    pixels: uint8 [height, width, 3], RGB.
    learn: False where the picture is given, True where a model is to produce it.
    jpeg: a JPEG file that holds exactly these pixels, where one is at hand.
  """

  pixels: np.ndarray
  learn: bool = False
  jpeg: bytes | None = None

  def __post_init__(self):
    shape = getattr(self.pixels, "shape", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or self.pixels.dtype != np.uint8:
      raise BadRequest(
          f"an image needs uint8 pixels [height, width, 3], got {getattr(self.pixels, 'dtype', type(self.pixels))}"
          f" {shape}; convert it to RGB first"
      )
    if 0 in shape:
      raise BadRequest(f"an image of size {shape[1]}x{shape[0]} has no pixels")

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Image) and self.learn == other.learn and np.array_equal(self.pixels, other.pixels)


Segment = Text | Image


@dataclasses.dataclass(frozen=True)
class Document:
  """An interleaved sequence of segments.

  Attributes:
    segments: in reading order.
    id: a name that appears in logs and digests, unique within its source.
    kind: what the document asks for, as its source calls it ("caption_to_image", "question", …).
    meta: whatever a scorer needs to judge an answer; never shown to a model.
  """

  segments: tuple[Segment, ...]
  id: str = ""
  kind: str = ""
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, "segments", tuple(self.segments))

  @property
  def name(self) -> str:
    """What messages call it."""
    return f"document {self.id!r}" if self.id else "the document"

  @property
  def images(self) -> tuple[Image, ...]:
    return tuple(s for s in self.segments if isinstance(s, Image))

  @property
  def texts(self) -> tuple[Text, ...]:
    return tuple(s for s in self.segments if isinstance(s, Text))

  def prompt(self) -> Document:
    """The leading segments that are given: what a generator is shown."""
    n = next((i for i, s in enumerate(self.segments) if s.learn), len(self.segments))
    return dataclasses.replace(self, segments=self.segments[:n])

  def response(self) -> Document:
    """What follows the prompt."""
    return dataclasses.replace(self, segments=self.segments[len(self.prompt().segments):])


class Source(Protocol):
  """Random access to Documents; a bad record is None."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Document | None: ...


def in_order(source: Source) -> Iterator[Document | None]:
  """All documents of a source, read many at once where it has a `__getitems__` that does that."""
  several = getattr(source, "__getitems__", None)
  if several is None:
    yield from (source[i] for i in range(len(source)))
    return
  for first in range(0, len(source), _AT_ONCE):
    yield from several(range(first, min(first + _AT_ONCE, len(source))))


def interleaved(text: str, pictures: Iterable[np.ndarray] = (), *, image: str = "<image>") -> Document:
  """A Document from a published prompt: text with a marker wherever a picture belongs.

  Args:
    text: "<image>What is this?", say; whatever stands between two markers is kept, spaces included.
    pictures: uint8 [height, width, 3] each, in the order of their markers.
    image: the marker.

  Raises:
    BadRequest: there are more or fewer markers than pictures.
  """
  parts, pictures = text.split(image), list(pictures)
  if len(parts) - 1 != len(pictures):
    raise BadRequest(f"the prompt has {len(parts) - 1} of {image!r} for {len(pictures)} pictures: give one for each")
  segments: list[Segment] = [Text(parts[0])]
  for picture, part in zip(pictures, parts[1:]):
    segments += [Image(np.asarray(picture)), Text(part)]
  return Document(tuple(s for s in segments if not isinstance(s, Text) or s.text))


def document(*segments: Segment | str | np.ndarray, learn: Iterable[int] = (), **fields: Any) -> Document:
  """Builds a Document from bare strings and arrays.

  Args:
    *segments: strings become Text, arrays become Image, segments stay.
    learn: the places in `segments` that are to be learnt.
    **fields: the Document's other fields.
  """
  learn = set(learn)

  def one(i: int, s: Segment | str | np.ndarray) -> Segment:
    if isinstance(s, (Text, Image)):
      return s
    return Text(s, i in learn) if isinstance(s, str) else Image(np.asarray(s), i in learn)

  return Document(tuple(one(i, s) for i, s in enumerate(segments)), **fields)

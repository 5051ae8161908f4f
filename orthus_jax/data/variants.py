"""The sequences that a document may be shown as."""

from __future__ import annotations

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image
from orthus_jax.data.sequence import Sequence, Tokenizer, is_planned, layout, unconditional


def variants(document: Document, tokenizer: Tokenizer, config: Config, *, dropped: bool) -> tuple[Sequence, ...]:
  """A document laid out: with its caption and, where `dropped`, without it in each way that guidance needs."""
  vision = config.model.vision_tokenizer

  def fit(s: Image) -> Image:
    pixels = images_lib.fit(s.pixels, vision.resolution, vision.pixels)
    return s if pixels is s.pixels else Image(pixels, s.learn)

  segments = tuple(fit(s) if isinstance(s, Image) else s for s in document.segments)
  fitted = Document(segments, id=document.id, kind=document.kind)
  documents = [fitted]
  if dropped and _asks_for_image(fitted):
    prompt = config.sampling.unconditional_prompt
    documents.append(unconditional(fitted, prompt))
    if any(isinstance(s, Image) for s in fitted.prompt().segments):
      documents.append(unconditional(fitted, prompt, keep_images=True))
  return tuple(layout(d, tokenizer, patches=vision.patches) for d in documents)


def _asks_for_image(document: Document) -> bool:
  """Whether a prompt stands before a response that opens with an image, or with words that plan it: what guidance is for."""
  prompt, response = document.prompt(), document.response()
  opens = isinstance(response.segments[0], Image) or is_planned(response) if response.segments else False
  return bool(prompt.texts) and opens

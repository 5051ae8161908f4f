"""From a request to the prompts of its lanes, and what a response may be."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from typing import Literal

import numpy as np

from orthus_jax.config import ModelConfig, SamplingConfig, VisionTokenizerConfig
from orthus_jax.config.image_head import SAMPLING_FIELDS, check_sampling
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image
from orthus_jax.data.sequence import Sequence, layout, unconditional
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.inference.engine_state import ANY_NUMBER
from orthus_jax.models import systems

Respond = Literal["auto", "image", "text"]


@dataclasses.dataclass(frozen=True)
class Request:
  """One document to be answered.

  Attributes:
    document: the prompt; all its segments are taken as given, learnt ones as the model's own earlier turns.
    respond: "image" draws one picture, after a text that says what it is to show where `sampling.plan` is set; "text" draws
      none; "auto" leaves it to the model.
    seed: whatever else is answered at the time, the same request with the same seed gets the same response.
    sampling: how; the model's config by default.
    max_images: pictures at most, for "auto". Room is kept for all of them beside `sampling.max_new_tokens` of text, or what
      text the context then has left; left out, there are as many as fit into these.
  """

  document: Document
  respond: Respond = "auto"
  seed: int = 0
  sampling: SamplingConfig | None = None
  max_images: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Lane:
  """A prompt.

  Attributes:
    tokens_T: int32, the image placeholder at patches.
    patch_T: int32, which patch of its picture stands there, -1 for none.
    pictures: in order.
    weight: how much the prediction after it counts.
  """

  tokens_T: np.ndarray
  patch_T: np.ndarray
  pictures: tuple[Image, ...]
  weight: float

  def __len__(self) -> int:
    return len(self.tokens_T)

  @property
  def key(self) -> bytes | None:
    """The same for prompts that are the same; None where there are pictures, which aren't compared."""
    return None if self.pictures else self.tokens_T.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A request that can be served.

  Attributes:
    main: the document itself.
    guides: what guidance compares it with.
    max_new: positions at most.
    max_images: pictures at most.
    stop_after_images: whether the response ends with its last picture.
    sampling, seed: of the request.
    patches: P, of a picture.
    solves: whether its pictures take a solver.
  """

  main: Lane
  guides: tuple[Lane, ...]
  max_new: int
  max_images: int
  stop_after_images: bool
  sampling: SamplingConfig
  seed: int
  patches: int
  solves: bool

  @property
  def slots(self) -> int:
    """What the longest of its lanes may come to."""
    return max(len(self.main) + self.max_new, *(len(g) + self.patches + 2 for g in self.guides), 0)

  @property
  def most_text(self) -> int:
    """Positions of text at most: what is kept for pictures it can't have."""
    return self.max_new - (0 if self.max_images == ANY_NUMBER else self.max_images * (self.patches + 2))

  @property
  def fixed(self) -> tuple[str, str, str]:
    """What is one for all that is generated together: weights, cache and solver_loop."""
    return self.sampling.weights, self.sampling.cache, self.sampling.solver_loop

  @property
  def solvers(self) -> tuple[tuple[str, int], tuple[str, int]]:
    """(name, steps) of the first patches' solver and of the later ones'."""
    s = self.sampling
    if not self.solves:  # where "steps" are passes, of which each row has its own number
      s = SamplingConfig()
    return (s.solver, s.steps), (s.solver, s.late_steps or s.steps)


def check_drawing(sampling: SamplingConfig, config: ModelConfig) -> None:
  """Refuses settings that a model can't draw by.

  Raises:
    BadRequest: if its image head has no such setting, or fewer steps.
  """
  check_sampling(config.image_head.kind, sampling)
  most, what = systems.image_head(config).most_steps(config)
  steps = max(sampling.steps, sampling.late_steps)
  if steps > most:
    raise BadRequest(f"sampling.steps={steps} must be at most {most}, the {what}")


def fit(document: Document, vision: VisionTokenizerConfig) -> Document:
  """A document with its pictures as the model sees them; those that are so already stay."""
  return dataclasses.replace(
      document,
      segments=tuple(
          Image(images_lib.fit(s.pixels, vision.resolution, vision.pixels), s.learn) if isinstance(s, Image) else s
          for s in document.segments
      ),
  )


def prepare(request: Request, *, config: ModelConfig, tokenizer: TextTokenizer, sampling: SamplingConfig) -> Prepared:
  """Lays a request's prompts out.

  Args:
    request: to be served.
    config: the model's.
    tokenizer: its text tokenizer.
    sampling: where the request has none of its own.

  Raises:
    BadRequest: if the prompt is empty or too long, or asks for more than the context or the solver has.
  """
  vision, longest, document = config.vision_tokenizer, config.transformer.max_positions, request.document
  sampling, P = request.sampling or sampling, vision.patches
  check_drawing(sampling, config)
  fitted = fit(document, vision)
  if not -(2**31) <= request.seed < 2**31:
    raise BadRequest(f"{document.name}: the seed {request.seed} must have 32 bits")
  if (request.max_images or 0) < 0:
    raise BadRequest(f"{document.name}: max_images={request.max_images} must not be negative")
  limit = {"image": 1, "text": 0, "auto": request.max_images}[request.respond]
  opened = tokenizer.boi if request.respond == "image" and not sampling.plan else None
  weighted = list(_branches(fitted, tokenizer, sampling, P, draws=limit != 0, edits=request.respond == "image"))
  main = _lane(*weighted[0], P, opened=opened)
  guides = tuple(_lane(s, w, P) for s, w in weighted[1:])
  room = longest - len(main)
  if room < 1:
    raise BadRequest(f"{document.name} takes {len(main)} positions of at most {longest}: shorten the prompt")
  pictures = (limit or 0) * (P + 2)
  max_new = pictures if opened is not None else pictures + sampling.max_new_tokens
  if limit is not None and pictures - (opened is not None) > room:
    raise BadRequest(
        f"{document.name}: {limit} picture{'s' if limit > 1 else ''} of {P} positions don't fit after its"
        f" {len(main)} positions into the {longest} of the model: ask for fewer or shorten the prompt"
    )
  too_long = next((g for g in guides if len(g) + P + 1 > longest), None)
  if too_long is not None:
    raise BadRequest(f"{document.name}: guidance needs {len(too_long) + P + 1} positions of at most {longest}")
  return Prepared(
      main=main, guides=guides, max_new=min(max_new, room), max_images=ANY_NUMBER if limit is None else limit,
      stop_after_images=request.respond == "image", sampling=sampling, seed=request.seed, patches=P,
      solves="solver" in SAMPLING_FIELDS[config.image_head.kind],
  )  # fmt: skip


def _branches(
    document: Document, tokenizer: TextTokenizer, sampling: SamplingConfig, patches: int, *, draws: bool, edits: bool
) -> Iterator[tuple[Sequence, float]]:
  """The document itself and what guidance compares it with, each with its weight."""
  laid = functools.partial(layout, tokenizer=tokenizer, patches=patches, respond=True)
  s_text, s_image = sampling.guidance, sampling.image_guidance
  given = dataclasses.replace(document, segments=tuple(dataclasses.replace(s, learn=False) for s in document.segments))
  main = laid(document)
  if not draws:
    yield main, 1.0
    return
  nothing = laid(unconditional(dataclasses.replace(given, segments=()), sampling.unconditional_prompt))
  if document.images and edits and (s_text, s_image) != (1.0, 1.0):
    # Editing: v_0 + s_image (v_image - v_0) + s_text (v - v_image).
    yield main, s_text
    yield laid(unconditional(given, sampling.unconditional_prompt, keep_images=True)), s_image - s_text
    yield nothing, 1.0 - s_image
    return
  yield main, s_text
  if s_text != 1.0:
    yield nothing, 1.0 - s_text


def _lane(s: Sequence, weight: float, patches: int, *, opened: int | None = None) -> Lane:
  tokens_T, is_patch_T = s.tokens_T, s.image_T >= 0
  patch_T = np.full(len(s), -1, np.int32)
  patch_T[is_patch_T] = np.arange(is_patch_T.sum()) % patches
  if opened is not None:
    tokens_T, patch_T = np.append(tokens_T, np.int32(opened)), np.append(patch_T, np.int32(-1))
  return Lane(tokens_T=tokens_T, patch_T=patch_T, pictures=s.images, weight=weight)

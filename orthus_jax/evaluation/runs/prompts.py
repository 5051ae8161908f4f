"""How each benchmark's words are put to each published system."""

from __future__ import annotations

import dataclasses

import numpy as np

from orthus_jax.data.documents import Document, Text, document
from orthus_jax.errors import BadRequest

_SHORT = "\nAnswer the question using a single word or phrase."


@dataclasses.dataclass(frozen=True)
class Template:
  """A system's wording.

  Attributes:
    draw: of a picture's prompt, {prompt}.
    ask: of a question, {question}, which its picture stands ahead of.
    suffix: what follows a question that wants a short answer.
    source: where it is from.
  """

  draw: str = "{prompt}"
  ask: str = "{question}"
  suffix: str = _SHORT
  source: str = ""


TEMPLATES = {
    "orthus": Template(source="the released inference scripts: a prompt as it is, a picture ahead of its question"),
    "chameleon": Template(source="arXiv 2405.09818; as Orthus, whose backbone it is"),
    "showo": Template(ask="USER: \n{question} ASSISTANT:", source="inference_mmu.py of showlab/Show-o"),
    "llava": Template(ask="USER: {question} ASSISTANT:", source="LLaVA-1.5, the conversation vicuna_v1 without its opening"),
    "bare": Template(suffix="", source="nothing but the benchmark's words, as the built-in world is trained"),
}


def template(name: str) -> Template:
  """A template by its name.

  Raises:
    BadRequest: if there is none of that name.
  """
  if name not in TEMPLATES:
    raise BadRequest(f"no prompt template is called {name!r}: {', '.join(TEMPLATES)}")
  return TEMPLATES[name]


def drawing(chosen: Template, prompt: str) -> Document:
  """A Document that asks for a picture."""
  return document(Text(chosen.draw.format(prompt=prompt)))


def asking(chosen: Template, pixels: np.ndarray, question: str, *, short: bool = True) -> Document:
  """A Document that asks about a picture.

  Args:
    chosen: the wording.
    pixels: uint8 [height, width, 3].
    question: as the benchmark has it.
    short: whether the benchmark wants a word or a phrase.
  """
  return document(pixels, Text(chosen.ask.format(question=question + (chosen.suffix if short else ""))))

"""How each benchmark's words are put to each published system."""

from __future__ import annotations

import dataclasses

from orthus_jax.data.documents import Document, Text, document
from orthus_jax.errors import BadRequest

# What questions end in, by the answer that they want; as LLaVA and, of MMMU, its own configs have it.
ENDS = {
    "short": "\nAnswer the question using a single word or phrase.",
    "open": "\n\nAnswer the question using a single word or phrase.",
    "choice": "\n\nAnswer with the option's letter from the given choices directly.",
}


@dataclasses.dataclass(frozen=True)
class Template:
  """A system's wording.

  Attributes:
    draw: of a picture's prompt, {prompt}.
    ask: of a question, {question}, which its picture stands ahead of.
    ends: whether questions end in what answer they want (ENDS).
    source: where it is from.
  """

  draw: str = "{prompt}"
  ask: str = "{question}"
  ends: bool = True
  source: str = ""


TEMPLATES = {
    "orthus": Template(source="the released inference scripts: a prompt as it is, a picture ahead of its question"),
    "chameleon": Template(source="arXiv 2405.09818; as Orthus, whose backbone it is"),
    "showo": Template(ask="USER: \n{question} ASSISTANT:", source="inference_mmu.py of showlab/Show-o"),
    "llava": Template(ask="USER: {question} ASSISTANT:", source="LLaVA-1.5, the conversation vicuna_v1 without its opening"),
    "bare": Template(ends=False, source="nothing but the benchmark's words, as the built-in world is trained"),
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


def question(chosen: Template, words: str, *, end: str = "") -> str:
  """A question's text.

  Args:
    chosen: the wording.
    words: as the benchmark has them.
    end: of ENDS; "" where the benchmark's own words say what answer they want.
  """
  return chosen.ask.format(question=words + (ENDS[end] if end and chosen.ends else ""))

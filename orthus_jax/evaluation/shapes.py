"""The benchmark of the built-in world: pictures, answers, captions, edits and stories, judged by the detector.

Pictures follow GenEval's rules (Ghosh et al., 2023), yes/no answers MME's (Fu et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any
import zlib

from orthus_jax.config import SamplingConfig
from orthus_jax.data.documents import Document, Source, Text
from orthus_jax.data.shapes import records
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import picture_quality
from orthus_jax.evaluation.results import Case, Result, summarize
from orthus_jax.evaluation.shapes_cases import JUDGES, Example
from orthus_jax.inference.requests import Request

KINDS = tuple(kind for kind in records.KINDS if kind not in records.TRAINING_KINDS)  # those that a test split has
# How each kind is answered, and with how many tokens at most (of a plan, where a picture is asked for).
_HOW = {
    "caption_to_image": ("image", 80), "image_to_caption": ("text", 80), "question": ("text", 40),
    "edit": ("image", 80), "story": ("auto", 1 << 20),
}  # fmt: skip
_BATCH = 64
_MEANS = {"geneval_overall": TAGS}


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much is judged; None for all there is, 0 for none.

  Attributes:
    caption_images: captions of each tag that are drawn.
    samples: pictures a caption; GenEval draws four.
    captions: pictures to describe.
    questions: pictures to ask about, each with all its questions.
    edits: pictures to edit.
    stories: stories to tell.
  """

  caption_images: int | None = None
  samples: int = 4
  captions: int | None = None
  questions: int | None = None
  edits: int | None = None
  stories: int | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), 1 if field.name == "samples" else 0
      if (value is None and field.name == "samples") or (value is not None and value < least):
        raise BadRequest(f"the limit {field.name}={value} must be a whole number from {least}")

  @classmethod
  def quick(cls) -> Limits:
    """For a report at the end of a short run."""
    return cls(caption_images=42, samples=1, captions=32, questions=64, edits=32, stories=16)

  def of(self, kind: str) -> int | None:
    """The limit of a kind; of each tag, for captions to draw."""
    return {"caption_to_image": self.caption_images, "image_to_caption": self.captions, "question": self.questions,
            "edit": self.edits, "story": self.stories}[kind]  # fmt: skip


def evaluate(
    model: Any,
    documents: Source,
    *,
    limits: Limits = Limits(),
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
  """Has a model answer the world's documents and judges it.

  Args:
    model: has `generate` and `config.sampling`, as `inference.model.Model`.
    documents: of a held-out split; read by number, in order, until the limits are met.
    limits: how much.
    sampling: how; the model's own by default. Answers and captions are cut to a few tokens.
    seed: of all draws; a document's draws don't hang on the limits.
    progress: called with (responses done, in all).

  Returns:
    Scores by the names in SECTIONS, and by part: "open_TYPE", "yes_no_TYPE", "pair_TYPE", "edit_OPERATION".
    What wasn't measured is absent. Measures: of pictures drawn of captions, see `picture_quality.compare`, and
    "pictures_per_second", compiling included.

  Raises:
    BadRequest: if there is no document of this world among them.
  """
  chosen = _choose(documents, limits)
  if not any(chosen.values()):
    raise BadRequest("nothing to judge: give the documents of the built-in world, and limits above 0")
  sampling = sampling or model.config.sampling
  jobs = {kind: _requests(kind, docs, limits) for kind, docs in chosen.items() if docs}
  how = {kind: _how(kind, sampling) for kind in jobs}
  holds = {}
  if hasattr(model, "capacity"):  # one for all kinds, so that programs are compiled once
    asked = [Request(r.prompt, **how[kind]) for kind, requests in jobs.items() for r in requests]
    holds = {"holds": model.capacity(asked, batch_size=_BATCH)}
  in_all, done, seconds, cases = sum(map(len, jobs.values())), 0, {}, []
  for kind, requests in jobs.items():
    begin = time.monotonic()
    answered = model.generate(
        [r.prompt for r in requests],
        seeds=[zlib.crc32(f"{seed}/{r.prompt.id}/{r.sample}".encode()) & 0x7FFFFFFF for r in requests],
        progress=(lambda n, _, before=done: progress(before + n, in_all)) if progress else None, batch_size=_BATCH,
        **how[kind], **holds,
    )
    responses = [a.segments[len(r.prompt.segments):] for r, a in zip(requests, answered)]
    generated = time.monotonic()
    cases += JUDGES[kind](requests, responses)
    done += len(requests)
    seconds[kind] = generated - begin
    seconds["judging"] = seconds.get("judging", 0.0) + time.monotonic() - generated
  return dataclasses.replace(
      summarize(cases, means=_MEANS, seconds=seconds, seed=seed), measures=_measures(model, chosen, cases, seconds)
  )


def _measures(
    model: Any, chosen: dict[str, list[Document]], cases: Sequence[Case], seconds: dict[str, float]
) -> dict[str, float]:
  """Of the pictures drawn of captions, beside the documents' own."""
  originals = {d.id: d.images[-1].pixels for d in chosen["caption_to_image"]}
  drawn = [(c.picture, originals[c.id]) for c in cases if c.kind == "caption_to_image" and c.picture is not None]
  if len(drawn) < 2 or not hasattr(model, "encode"):
    return {}
  speed = {"pictures_per_second": len(drawn) / seconds["caption_to_image"]}
  return speed | picture_quality.compare(model, *zip(*drawn))


def _choose(documents: Source, limits: Limits) -> dict[str, list[Document]]:
  """Documents by kind, in reading order, up to the limits."""
  chosen: dict[str, list[Document]] = {kind: [] for kind in KINDS}
  quota = {(kind, tag): limits.of(kind) for kind in KINDS for tag in (TAGS if kind == "caption_to_image" else ("",))}
  for number in range(len(documents)):
    if all(left == 0 for left in quota.values()):
      break
    document = documents[number]
    if document is None or document.kind not in chosen:
      continue
    key = (document.kind, document.meta.get("tag", "") if document.kind == "caption_to_image" else "")
    if key not in quota or quota[key] == 0:
      continue
    left = quota[key]
    quota[key] = None if left is None else left - 1
    chosen[document.kind].append(document)
  return chosen


def _requests(kind: str, documents: Sequence[Document], limits: Limits) -> list[Example]:
  if kind == "caption_to_image":
    return [Example(d, d.prompt(), sample) for d in documents for sample in range(limits.samples)]
  if kind == "question":
    # Each on its own: questions before it, with their answers, would help.
    return [
        Example(d, Document((d.segments[0], Text(q["question"])), id=f"{d.id}/{i}", kind=kind), question=q)
        for d in documents for i, q in enumerate(d.meta["questions"])
    ]  # fmt: skip
  return [Example(d, d.prompt()) for d in documents]


def _how(kind: str, sampling: SamplingConfig) -> dict[str, Any]:
  """How a kind is answered."""
  respond, tokens = _HOW[kind]
  return {"respond": respond, "sampling": dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, tokens))}





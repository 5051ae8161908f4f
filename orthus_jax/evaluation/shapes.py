"""The benchmark of the built-in world: pictures, answers, captions, edits and stories, judged by the detector.

Pictures follow GenEval's rules (Ghosh et al., 2023), yes/no answers MME's (Fu et al., 2023).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import time
from typing import Any
import zlib

import numpy as np
import rich.box
import rich.console
import rich.table

from orthus_jax.config import SamplingConfig
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.shapes import changes, language, questions, records
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes_judge as judge
from orthus_jax.evaluation.results import Case, Result, summarize

KINDS = tuple(kind for kind in records.KINDS if kind not in records.TRAINING_KINDS)  # those that a test split has
_OPEN_CORE = ("color", "shape", "count")
# How each kind is answered, and with how many tokens at most.
_HOW = {
    "caption_to_image": ("image", 1 << 20), "image_to_caption": ("text", 80), "question": ("text", 12),
    "edit": ("image", 1 << 20), "story": ("auto", 1 << 20),
}  # fmt: skip
_BATCH = {"image": 64, "text": 256, "auto": 64}
_SHUFFLES = 8
_MEANS = {"geneval_overall": TAGS}

# Score name → what it says, in the order of tables. Those by question type and edit operation follow their section.
SECTIONS: dict[str, dict[str, str]] = {
    "Pictures from captions": {
        "single_object": "one thing: shape, colour and place", "two_object": "two things", "counting": "counting",
        "colors": "colours", "position": "relative position", "color_attr": "colours of two things",
        "geneval_overall": "mean of the six", "geneval_images": "all pictures alike",
        "geneval_prompts": "any of a prompt's pictures", "single_object_shape": "one thing: its shape",
        "single_object_color": "one thing: its colour", "single_object_place": "one thing: its place",
        "single_object_size": "one thing: its size, where asked for",
        "single_object_exact": "one thing: all asked for, nothing else",
    },
    "Questions": {
        "open_accuracy": "open: colour, shape, count", "open_accuracy_all": "open, position too",
        "yes_no_accuracy": "yes/no", "pair_accuracy": "yes/no, both of a pair",
    },
    "Captions": {"captions": "say exactly what is there", "caption_attributes": "attributes right"},
    "Edits": {
        "edits": "as told", "edits_exact": "as told, every size right too", "kept": "untouched things kept",
    },
    "Stories": {
        "story_turns": "turns right", "story_texts": "sentences that make sense", "story_pictures": "pictures that fit",
        "story_on_topic": "about what was asked", "story_length_ok": "three to five pictures",
    },
}  # fmt: skip

_BY_PART = {
    "Questions": {"open_": ("open:", questions.TYPES), "yes_no_": ("yes/no:", questions.TYPES),
                  "pair_": ("both of a pair:", questions.TYPES)},
    "Edits": {"edit_": ("change:", changes.OPERATIONS)},
}  # fmt: skip
_BRITISH = {"color": "colour", "add": "add something", "remove": "remove something"}


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
    documents: Sequence[Document],
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
    What wasn't measured is absent.

  Raises:
    BadRequest: if there is no document of this world among them.
  """
  chosen = _choose(documents, limits)
  if not any(chosen.values()):
    raise BadRequest("nothing to judge: give the documents of the built-in world, and limits above 0")
  sampling = sampling or model.config.sampling
  jobs = {kind: _requests(kind, docs, limits) for kind, docs in chosen.items() if docs}
  in_all, done, seconds, cases = sum(map(len, jobs.values())), 0, {}, []
  for kind, requests in jobs.items():
    begin = time.monotonic()
    respond, tokens = _HOW[kind]
    answered = model.generate(
        [r.prompt for r in requests],
        seeds=[zlib.crc32(f"{seed}/{r.prompt.id}/{r.sample}".encode()) & 0x7FFFFFFF for r in requests],
        progress=(lambda n, _, before=done: progress(before + n, in_all)) if progress else None,
        respond=respond, batch_size=_even(len(requests), _BATCH[respond]),
        sampling=dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, tokens)),
    )
    responses = [a.segments[len(r.prompt.segments):] for r, a in zip(requests, answered)]
    generated = time.monotonic()
    cases += _JUDGES[kind](requests, responses)
    done += len(requests)
    seconds[kind] = generated - begin
    seconds["judging"] = seconds.get("judging", 0.0) + time.monotonic() - generated
  return summarize(cases, means=_MEANS, seconds=seconds, seed=seed)


@dataclasses.dataclass(frozen=True)
class _Request:
  """A prompt and the document it comes from; `question` is the record of the question asked."""

  document: Document
  prompt: Document
  sample: int = 0
  question: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _choose(documents: Sequence[Document], limits: Limits) -> dict[str, list[Document]]:
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
    quota[key] = None if quota[key] is None else quota[key] - 1
    chosen[document.kind].append(document)
  return chosen


def _requests(kind: str, documents: Sequence[Document], limits: Limits) -> list[_Request]:
  if kind == "caption_to_image":
    return [_Request(d, d.prompt(), sample) for d in documents for sample in range(limits.samples)]
  if kind == "question":
    # Each on its own: questions before it, with their answers, would help.
    return [
        _Request(d, Document((d.segments[0], Text(q["question"])), id=f"{d.id}/{i}", kind=kind), question=q)
        for d in documents for i, q in enumerate(d.meta["questions"])
    ]  # fmt: skip
  return [_Request(d, d.prompt()) for d in documents]


def _even(n: int, most: int) -> int:
  """A batch size that shares n out evenly: an odd rest would cost a compilation of its own."""
  return -(-n // -(-n // most))


# --- judging, kind by kind ------------------------------------------------------------------------------------------


def _picture(response: Sequence[Any]) -> np.ndarray | None:
  return next((s.pixels for s in response if isinstance(s, Image)), None)


def _judge_pictures(requests: Sequence[_Request], responses: Sequence[tuple]) -> list[Case]:
  documents = {r.document.id: r.document for r in requests}
  chance = _chance(list(documents.values()))
  any_right = collections.defaultdict(bool)
  verdicts = []
  for request, response in zip(requests, responses):
    detections = judge.detect(_picture(response))
    marks, reason = judge.picture(detections, request.document.meta)
    any_right[request.document.id] |= not reason
    verdicts.append((request, response, detections, marks, reason))
  several = len(requests) > len(documents)
  cases = []
  for request, response, detections, marks, reason in verdicts:
    d = request.document
    if several and request.sample == 0:
      marks = marks | {"geneval_prompts": (float(any_right[d.id]), 1.0)}
    cases.append(Case(
        kind=d.kind, tag=d.meta["tag"], id=d.id, prompt=d.texts[0].text, right=not reason, marks=marks,
        response=response, seen=judge.say(detections), reason=reason, baseline=chance[d.id],
    ))  # fmt: skip
  return cases


def _chance(documents: Sequence[Document]) -> dict[str, dict[str, tuple[float, float]]]:
  """Marks that pictures of other documents get for a document's caption, by its id."""
  seen = [judge.detect(d.images[0].pixels) for d in documents]
  order = np.random.default_rng(0).permutation(len(documents))
  place = np.argsort(order)
  chance = {}
  for i, d in enumerate(documents):
    total: dict[str, list[float]] = {}
    for shift in range(1, min(_SHUFFLES + 1, len(documents))):
      other = order[(place[i] + shift) % len(documents)]
      for name, (got, of) in judge.picture(seen[other], d.meta)[0].items():
        entry = total.setdefault(name, [0.0, 0.0])
        entry[0] += got
        entry[1] += of
    chance[d.id] = {name: (got, of) for name, (got, of) in total.items()}
  return chance


def _judge_questions(requests: Sequence[_Request], responses: Sequence[tuple]) -> list[Case]:
  answers = [" ".join(s.text for s in response if isinstance(s, Text)) for response in responses]
  rights = [judge.answer(a, r.question) for a, r in zip(answers, requests)]
  by_type = collections.defaultdict(collections.Counter)
  for r in requests:
    if r.question["form"] == "open":
      by_type[r.question["type"]][r.question["answer"]] += 1
  pairs: dict[tuple[str, int], list[bool]] = collections.defaultdict(list)
  cases = []
  for request, response, right in zip(requests, responses, rights):
    q, d, got = request.question, request.document, float(right)
    names, base = [], 0.0
    marks, baseline = {}, {}
    if q["form"] == "open":
      names = [f"open_{q['type']}", "open_accuracy_all", *(["open_accuracy"] if q["type"] in _OPEN_CORE else [])]
      base = float(q["answer"] == by_type[q["type"]].most_common(1)[0][0])
    elif q["pair"] is not None:
      # Without a partner of the other answer, always saying yes would pay.
      names, base = [f"yes_no_{q['type']}", "yes_no_accuracy"], float(q["answer"] == "yes")
      both = pairs[d.id, q["pair"]]
      both.append(right)
      if len(both) == 2:
        for name in (f"pair_{q['type']}", "pair_accuracy"):
          marks[name], baseline[name] = (float(all(both)), 1.0), (0.0, 1.0)
    marks |= {name: (got, 1.0) for name in names}
    baseline |= {name: (base, 1.0) for name in names}
    cases.append(Case(
        kind=d.kind, tag=q["type"], id=d.id, prompt=q["question"], given=d.images[0].pixels, response=response,
        expected=q["answer"], right=right, reason="" if right else f"expected {q['answer']}", marks=marks,
        baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_captions(requests: Sequence[_Request], responses: Sequence[tuple]) -> list[Case]:
  things = [records.as_things(r.document.meta["things"]) for r in requests]
  cases = []
  for i, (request, response) in enumerate(zip(requests, responses)):
    d = request.document
    text = " ".join(s.text for s in response if isinstance(s, Text))
    marks, reason = judge.caption(text, things[i])
    baseline = judge.caption(language.describe(things[(i + 1) % len(things)]), things[i])[0] if len(things) > 1 else {}
    cases.append(Case(
        kind=d.kind, tag=str(len(things[i])), id=d.id, prompt=request.prompt.texts[0].text, given=d.images[0].pixels,
        response=response, expected=language.describe(language.reading_order(things[i])), right=not reason,
        reason=reason, marks=marks, baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_edits(requests: Sequence[_Request], responses: Sequence[tuple]) -> list[Case]:
  cases = []
  for request, response in zip(requests, responses):
    d = request.document
    detections = judge.detect(_picture(response))
    marks, reason = judge.edit(detections, d.meta)
    baseline, _ = judge.edit(judge.detect(d.images[0].pixels), d.meta)
    cases.append(Case(
        kind=d.kind, tag=d.meta["operation"], id=d.id, prompt=request.prompt.texts[0].text, given=d.images[0].pixels,
        target=d.images[-1].pixels, response=response, right=not reason, reason=reason, seen=judge.say(detections),
        expected=language.describe(records.as_things(d.meta["things"])), marks=marks, baseline=baseline,
    ))  # fmt: skip
  return cases


def _judge_stories(requests: Sequence[_Request], responses: Sequence[tuple]) -> list[Case]:
  cases = []
  for request, response in zip(requests, responses):
    d = request.document
    turns, marks = judge.story(response, records.as_things(d.meta["turns"][0]))
    wrong = [f"turn {i}: {t.reason}" for i, t in enumerate(turns, 1) if not t.right]
    wrong += [] if marks["story_length_ok"][0] else [f"{sum(t.pixels is not None for t in turns)} pictures"]
    wrong += [] if marks["story_on_topic"][0] else ["not about what was asked"]
    cases.append(Case(
        kind=d.kind, tag="", id=d.id, prompt=d.texts[0].text, response=tuple(response), right=not wrong,
        reason="; ".join(wrong), marks=marks, turns=turns,
    ))  # fmt: skip
  return cases


_JUDGES: dict[str, Callable[[Sequence[_Request], Sequence[tuple]], list[Case]]] = {
    "caption_to_image": _judge_pictures, "image_to_caption": _judge_captions, "question": _judge_questions,
    "edit": _judge_edits, "story": _judge_stories,
}  # fmt: skip


# --- showing --------------------------------------------------------------------------------------------------------


def rows(result: Result) -> list[tuple[str, str, str]]:
  """(section, score name, what it says) of every score there is, in a table's order."""
  found = []
  for section, labels in SECTIONS.items():
    names = labels | {f"{prefix}{part}": f"{words} {_BRITISH.get(part, part)}"
                      for prefix, (words, parts) in _BY_PART.get(section, {}).items() for part in parts}
    found += [(section, name, label) for name, label in names.items() if name in result.scores]
  return found


def table(result: Result) -> str:
  """The scores as a table of plain text, at most 112 columns wide."""
  shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  shown.add_column("score")
  shown.add_column("")
  for heading in ("%", "95% interval", "n", "baseline"):
    shown.add_column(heading, justify="right")
  before = None
  for section, name, label in rows(result):
    if section != before:
      shown.add_row(f"[bold]{section}[/bold]", *[""] * 5)
      before = section
    low, high = result.intervals[name]
    base = result.baselines.get(name)
    shown.add_row(
        f"  {name}", label, f"{100 * result.scores[name]:.1f}", f"{100 * low:.1f} – {100 * high:.1f}",
        str(result.counts[name]), "" if base is None else f"{100 * base:.1f}",
    )  # fmt: skip
  out = io.StringIO()
  rich.console.Console(file=out, width=112, no_color=True, highlight=False).print(shown)
  return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"

"""Documents of the `shapes` world, made from (seed, split, kind, number) alone."""

from __future__ import annotations

import numpy as np

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.shapes import brief, changes, drawing, language, questions, world
from orthus_jax.data.shapes.world import SPLITS, Scene, Thing, pick
from orthus_jax.errors import BadRequest

# No test asks the last ones.
TRAINING_KINDS = (
    "brief_question", "crowd_to_image", "copy", "planned_caption", "planned_edit", "outline", "planned_story",
    "planned_question", "planned_brief_question",
)  # fmt: skip
KINDS = ("caption_to_image", "image_to_caption", "question", "edit", "story", *TRAINING_KINDS)

# In hundredths: what training captions are about. Test captions take the six tags in turn.
_TAG_SHARES = {"single_object": 52, "two_object": 8, "counting": 8, "colors": 8, "position": 8, "color_attr": 8,
               language.DESCRIPTION: 8}
_PLANNED_SHARES = {"single_object": 10, "two_object": 12, "counting": 16, "colors": 6, "position": 12, "color_attr": 10,
                   language.DESCRIPTION: 34}
_COPY = ("draw the picture", "draw what you see")
_FEW_THINGS, _FEW_BRIEFLY = 1 / 3, 1 / 2  # of training's questions, on the way to crowds
_TAGS = {
    "caption_to_image": tuple(tag for tag, share in _TAG_SHARES.items() for _ in range(share)),
    "planned_caption": tuple(tag for tag, share in _PLANNED_SHARES.items() for _ in range(share)),
    "crowd_to_image": tuple(t for t in _TAG_SHARES if t not in ("single_object", "colors")) + (language.DESCRIPTION,) * 2,
}  # fmt: skip


def make_document(kind: str, split: str, number: int, *, seed: int = 0, resolution: int = 32) -> Document:
  """Makes one document; the same arguments always give the same one.

  Args:
    kind: one of KINDS.
    split: one of world.SPLITS; every scene drawn belongs to it.
    number: which of the documents of this kind and split.
    seed: of the whole data set.
    resolution: side of the pictures in pixels.

  Returns:
    A Document. By kind, its segments (those to be learnt in brackets) and its metadata:
      caption_to_image: text, [image]; GenEval's metadata (see `language.caption`) and "things".
      crowd_to_image: the same with the tags that are hardest to draw, all but single_object and colors.
      planned_caption: text, [text, image]; the same with an outline of the picture ahead of it.
      image_to_caption: image, text, [text]; "things".
      question, brief_question: image, then text, [text] for each question; "things" and "questions", the records of
        `questions.ask` or `brief.ask`.
      planned_question, planned_brief_question: the same, but that what counts things says ahead of its answer what
        stands where, numbered where it counts (`language.counted`).
      copy: image, text, [image]; the same picture again, on which finding each patch's counterpart is learnt ahead of edits;
        "source" and "things".
      edit: image, text, [image]; "source" and "things", the latter those of the picture asked for, and "operation".
      planned_edit: image, text, [text, image]; the same with what is there, the change in it, and an outline of the picture
        asked for ahead of it (`language.outlined_edit`).
      outline: image, text, [text]; "things".
      story: text, then [text, image] three to five times; "turns", the things of each picture.
      planned_story: the same, each sentence followed by an outline of its picture (`language.told`).
    Things are written as [shape, color, size, place].

  Raises:
    BadRequest: for another kind or split.
  """
  if kind not in KINDS or split not in SPLITS:
    raise BadRequest(f"shapes has no {kind!r} in {split!r}; kinds: {', '.join(KINDS)}; splits: {', '.join(SPLITS)}")
  rng = np.random.default_rng((seed, SPLITS.index(split), KINDS.index(kind), number))

  def draw(scene: Scene, learn: bool = False) -> Image:
    return Image(drawing.render(scene, resolution), learn)

  segments: list[Text | Image]
  if kind in _TAGS:
    tag = str(pick(rng, _TAGS[kind])) if split == "train" else language.TAGS[number % len(language.TAGS)]
    scene = world.sample_in_split(lambda: language.sample_for(rng, tag), split)
    text, meta = language.caption(rng, scene, tag)
    words = [Text(language.outline(scene.things), True)] if kind == "planned_caption" else []
    segments = [Text(text), *words, draw(scene, True)]
    meta = meta | {"things": as_lists(scene)}
  elif kind in ("image_to_caption", "outline"):
    scene = world.sample_in_split(lambda: language.sample_for(rng, language.DESCRIPTION), split)
    # In reading order: what is to be said follows from the picture.
    text = language.describe(language.reading_order(scene.things))
    asked_for = str(pick(rng, language.DESCRIBE))
    if kind == "outline":
      text, asked_for = language.outline(scene.things), "what is where?"
    segments = [draw(scene), Text(asked_for), Text(text, True)]
    meta = {"things": as_lists(scene)}
  elif kind.removeprefix("planned_") in ("question", "brief_question"):
    briefly = kind.endswith("brief_question")
    few = split == "train" and rng.random() < (_FEW_BRIEFLY if briefly else _FEW_THINGS)
    subject = questions.sample(rng, simple=few)
    while world.split_of(subject.scene) != split:
      subject = questions.sample(rng, simple=few)
    asked = brief.ask(rng, subject.scene) if briefly else questions.ask(rng, subject, paired=split != "train")
    segments = [draw(subject.scene)]
    for record in asked:
      answer = record["answer"]
      if kind.startswith("planned_") and record["type"] == "count":
        answer = language.counted(subject.scene.things, record["attribute"], record["places"], answer)
      segments += [Text(record["question"]), Text(answer, True)]
    meta = {"things": as_lists(subject.scene), "questions": asked}
  elif kind == "copy":
    scene = world.sample_in_split(lambda: world.sample_distinct(rng, int(rng.integers(1, 4))), split)
    segments = [draw(scene), Text(str(pick(rng, _COPY))), draw(scene, True)]
    meta = {"source": as_lists(scene), "things": as_lists(scene)}
  elif kind in ("edit", "planned_edit"):
    edit = changes.sample_edit(rng, split)
    segments = [draw(edit.source), Text(edit.instruction), draw(edit.target, True)]
    if kind == "planned_edit":
      said = language.outlined_edit(edit.source.things, edit.before, edit.after, edit.target.things)
      segments.insert(2, Text(said, True))
    meta = {"source": as_lists(edit.source), "things": as_lists(edit.target), "operation": edit.change.operation}
  else:
    story = changes.sample_story(rng, split)
    segments = [Text(story.prompt)]
    for sentence, scene in zip(story.sentences, story.scenes):
      text = language.told(sentence, scene.things) if kind == "planned_story" else sentence
      segments += [Text(text, True), draw(scene, True)]
    meta = {"turns": [as_lists(scene) for scene in story.scenes]}
  return Document(tuple(segments), id=f"shapes/{split}/{kind}/{number:05d}", kind=kind, meta=meta)


def as_lists(scene: Scene) -> list[list[str]]:
  """Things as JSON holds them."""
  return [[t.shape, t.color, t.size, t.place] for t in scene.things]


def as_things(lists: list[list[str]]) -> tuple[Thing, ...]:
  """Things back from a document's metadata."""
  return tuple(Thing(*values) for values in lists)

"""All kinds of text of the world, for its text tokenizer to be trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orthus_jax.data.shapes import changes, language, questions, world


def texts(seed: int = 0, scenes: int = 2000) -> Iterator[str]:
  """All kinds of text of this world, to train a tokenizer on; the same for the same arguments."""
  rng = np.random.default_rng(seed)
  for _ in range(scenes):
    for tag in (*language.TAGS, language.DESCRIPTION):
      yield language.caption(rng, language.sample_for(rng, tag), tag)[0]
    yield str(world.pick(rng, language.DESCRIBE))
    for question in questions.ask(rng, questions.sample(rng)):
      yield question["question"]
      yield question["answer"]
    yield changes.sample_edit(rng, "train").instruction
    yield from changes.sample_story(rng, "train").texts

"""Long documents are cut into ones that a row has room for; nothing is lost."""

import numpy as np
import tiny

from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.prepared import writer
from orthus_jax.data.prepared.shards import Shards
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.windows import windows

TK = tiny.tokenizer()


def story(frames: int, kind: str = "story") -> Document:
  segments = [Text("start")]
  for n in range(frames):
    segments += [Image(np.full((8, 8, 3), n + 1, np.uint8), True), Text(f"red {n}", True), Text("box", True)]
  return Document(tuple(segments[:-1]), id="s", kind=kind)


def brief(document: Document) -> str:
  said = (str(s.pixels[0, 0, 0]) if isinstance(s, Image) else s.text for s in document.segments)
  return " ".join(f"[{t}]" if s.learn else t for t, s in zip(said, document.segments))


def test_a_story_is_cut_behind_its_pictures_and_each_part_starts_from_a_prompt():
  parts = list(windows(story(5), 2))
  assert [brief(p) for p in parts] == [
      "start [1] [red 0] [box] [2]", "red 1 box [3] [red 2] [box] [4]", "red 3 box [5] [red 4]",
  ]  # fmt: skip
  assert [p.id for p in parts] == ["s/1", "s/2", "s/3"] and {p.kind for p in parts} == {"story"}


def test_what_fits_or_belongs_together_stays_whole():
  for document, images in ((story(2), 2), (story(5), 0), (story(5, "edit"), 2), (story(5, "question"), 1)):
    assert list(windows(document, images)) == [document]
  given = tuple(Image(np.full((8, 8, 3), n, np.uint8)) for n in range(4))
  about = Document((*given, Text("red, all", True)), kind="interleaved")  # the words are of all four
  assert list(windows(about, 2)) == [about]
  assert len(list(windows(Document((*given, Text("red", True), *given), kind="interleaved"), 2))) == 4
  bare = Document(tuple(Image(np.zeros((8, 8, 3), np.uint8), True) for _ in range(4)), kind="interleaved")
  assert [len(p.images) for p in windows(bare, 3)] == [3, 1]


def test_training_and_preparing_cut_alike(tmp_path):
  config = tiny.config(data__images_per_document=2)
  long = [story(5), story(1)]
  assert len(Pipeline(long, TK, config)) == 4 and not Pipeline(long, TK, config).too_long
  assert Pipeline(long, TK, tiny.config()).too_long == ["s"]  # otherwise it is left out
  made = writer.prepare(long, TK, config, tmp_path / "out", images="pixels")
  assert made["documents"] == 4 and made["pictures"] == 5 and made["rejected"]["records"] == 0


def test_pictures_that_have_yet_to_be_fitted_stay_apart(tmp_path):
  """Fitted copies of one part are gone when the next part's are made, perhaps in the same places of memory."""
  segments = [s for n in range(40) for s in (Text("red"), Image(np.full((16, 16, 3), 6 * n, np.uint8), True))]
  long = Document(tuple(segments), id="s", kind="story")
  made = writer.prepare([long], TK, tiny.config(data__images_per_document=1), tmp_path / "out", images="pixels")
  kept = Shards([tmp_path / "out" / "pictures-00000.array_record"], made["shards"]["pictures"], BadRecords())
  assert [kept.read(i)[0] for i in range(made["pictures"])] == [6 * n for n in range(40)]

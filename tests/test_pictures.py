"""Pictures that the vision tokenizer learns from: drawn by the step, held out, read from prepared shards."""

import collections
import shutil

import numpy as np
import pytest
import tiny

from orthus_jax.data.pictures import HeldOut, PicturesInMemory
from orthus_jax.data.prepared import writer as prepared
from orthus_jax.errors import BadRequest
from orthus_jax.training.tasks import TokenizerTask

TK = tiny.tokenizer()
SOURCE = tiny.TinySource(40)


def config(*paths, **changes):
  where = {"data__path": str(paths[0])} if len(paths) == 1 else {"data__path": "", "data__mixture": list(paths)}
  return tiny.config(task="vision_tokenizer", data__source="prepared", **where, **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("prepared")
  for images in ("pixels", "jpeg", "features"):
    encode = lambda x: np.zeros((len(x), 16, 4), np.float32)  # noqa: E731
    prepared.prepare(SOURCE, TK, tiny.config(), root / images, images=images, encode=encode, encoded_by="fake")
  return root


def distinct():
  return {i.pixels.tobytes() for n in range(len(SOURCE)) for i in SOURCE[n].images}


def test_an_epoch_of_prepared_pictures_shows_each_once_in_a_fresh_order(folders):
  task = TokenizerTask(config(folders / "pixels", run__batch_size=1), None)
  n = task.pictures.trained
  epochs = [[task.batch(step).tobytes() for step in range(e * n, (e + 1) * n)] for e in (0, 1)]
  assert set(epochs[0]) == set(epochs[1]) == distinct() and n == len(distinct())
  assert epochs[0] != epochs[1]


def test_batches_are_a_function_of_seed_and_step_and_rows_of_their_place(folders):
  c = config(folders / "jpeg")
  one, two = TokenizerTask(c, None), TokenizerTask(c, None)
  two.batch(5)
  for step in (0, 7, 3):
    whole = one.batch(step)
    assert whole.shape == (8, 8, 8, 3) and whole.dtype == np.uint8
    parts = [two.batch(step, rows) for rows in np.split(np.arange(8), 2)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
  other = TokenizerTask(tiny.replace(c, "run", seed=1), None)
  assert other.document_ids(0) != one.document_ids(0)
  assert other.contents() == one.contents()
  assert [s for s, _ in one.batches(2, 5)] == [2, 3, 4]


def test_mixtures_keep_their_shares(folders):
  c = config((str(folders / "pixels"), 3.0), (str(folders / "jpeg"), 1.0), run__batch_size=4)
  pictures = TokenizerTask(c, None).pictures
  half = pictures.trained // 2
  drawn = collections.Counter(p < half for p in pictures.draw(np.arange(200)))
  assert drawn == {True: 150, False: 50}


def test_pictures_held_out_are_never_shown_and_are_all_the_others(folders):
  c = config(folders / "pixels", run__batch_size=1, tokenizer_loss={"held_out": 7})
  for task in (TokenizerTask(c, None), TokenizerTask(tiny.replace(c, "data", source="jsonl"), SOURCE)):
    p = task.pictures
    shown = {task.batch(step).tobytes() for step in range(2 * p.trained)}
    held = {x.tobytes() for x in p.read(p.trained + np.arange(p.held_out))}
    assert len(held) == 7 and not shown & held and shown | held == distinct()


def test_places_of_what_is_held_out():
  for n, count in ((1, 0), (9, 0), (9, 1), (9, 8), (30, 11)):
    split = HeldOut(n, count)
    places = [split.place(i) for i in range(n)]
    assert sorted(places) == list(range(n))
    assert places[: n - count] == sorted(places[: n - count])
    trained = set(places[: n - count])
    assert [split.before(p) for p in range(n + 1)] == [sum(t < p for t in trained) for p in range(n + 1)]
  with pytest.raises(BadRequest, match="held_out=9 leaves none of 9 pictures"):
    HeldOut(9, 9)


def test_other_sources_are_drawn_as_before():
  c = tiny.config(task="vision_tokenizer", run__seed=3)
  pictures = PicturesInMemory(c, SOURCE)
  n = len(distinct())
  orders = np.concatenate([np.random.default_rng((3, e)).permutation(n) for e in range(2)])
  assert pictures.draw(np.arange(n, 2 * n)) == orders[n:].tolist()


def test_folders_that_cannot_serve(folders, tmp_path):
  with pytest.raises(BadRequest, match="features holds features, .* --images=pixels or --images=jpeg"):
    TokenizerTask(config(folders / "features"), None)
  with pytest.raises(BadRequest, match="holds no complete prepared data"):
    TokenizerTask(config(tmp_path), None)


def test_a_picture_that_cannot_be_read_is_counted_and_the_next_takes_its_place(folders, tmp_path):
  shutil.copytree(folders / "pixels", tmp_path / "cut")
  (shard,) = (tmp_path / "cut").glob("pictures-*")
  shard.write_bytes(shard.read_bytes()[:-200])  # its footer is gone: none can be read
  task = TokenizerTask(config(tmp_path / "cut", data__max_bad_share=1.0), None)
  with pytest.raises(BadRequest, match="no picture of .*cut can be read"):
    task.batch(0)
  both = config((str(tmp_path / "cut"), 1.0), (str(folders / "pixels"), 1.0), data__max_bad_share=1.0)
  task = TokenizerTask(both, None)
  assert {x.tobytes() for x in task.batch(0)} <= distinct()
  with pytest.raises(BadRequest, match="are bad so far"):
    TokenizerTask(config(tmp_path / "cut"), None).batch(0)

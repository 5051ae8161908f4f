"""Prepared folders of another resolution than the model's: read as if they had been prepared at its own."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny

from orthus_jax.config.vision import PixelsConfig
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.images import fit
from orthus_jax.data.prepared import writer as prepared
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.data.sequence import layout, with_patches
from orthus_jax.errors import BadRequest
from orthus_jax.training.tasks import TokenizerTask

TK = tiny.tokenizer()
LARGER = dict(model__vision_tokenizer__resolution=16, model__transformer__max_positions=256, data__sequence_length=200)


class Fitted:
  """The tiny documents, their pictures fitted to a resolution."""

  def __init__(self, numbers, resolution):
    self._numbers, self._resolution = list(numbers), resolution

  def __len__(self):
    return len(self._numbers)

  def __getitem__(self, i):
    d = tiny.TinySource(80)[self._numbers[i]]
    pixels = lambda s: fit(s.pixels, self._resolution, PixelsConfig())  # noqa: E731
    return dataclasses.replace(
        d, segments=tuple(dataclasses.replace(s, pixels=pixels(s)) if isinstance(s, Image) else s for s in d.segments)
    )


def config(*paths, **changes):
  where = {"data__path": str(paths[0])} if len(paths) == 1 else {"data__path": "", "data__mixture": list(paths)}
  return tiny.config(data__source="prepared", **where, **{"data__caption_dropout": 0.3} | changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("prepared")
  encode = lambda x: np.zeros((len(x), 16, 4), np.float32)  # noqa: E731
  for name, numbers, images, made_with, size in (
      ("8", range(40), "pixels", {}, 8), ("16", range(40), "pixels", LARGER, 16), ("16b", range(40, 80), "jpeg", LARGER, 16),
      ("8 features", range(40), "features", {}, 8),
  ):  # fmt: skip
    prepared.prepare(
        Fitted(numbers, size), TK, tiny.config(**made_with), root / name, images=images, encode=encode, encoded_by="fake"
    )
  return root


def pictures_of(*learnt):
  return [Image(np.zeros((8, 8, 3), np.uint8), learn) for learn in learnt]


def test_another_number_of_patches_is_what_the_document_would_have_been_laid_out_with():
  given, made = pictures_of(False, True)
  text, answer = Text("what is this"), Text("a red box", True)
  patches_long = Text("box " * 18, True)  # about as long as a picture and its separators: its positions aren't a picture's
  for segments in (
      (text, answer), (given, text, answer), (text, made), (given, text, made), (text, answer, made, answer, made),
      (text, made, made, text, answer), (text, made, text, made, given), (text, made, patches_long), (made, patches_long, text),
  ):  # fmt: skip
    for there, wanted in ((16, 64), (64, 16), (16, 1), (1, 16), (19, 18), (16, 16)):
      document = Document(tuple(segments))
      a, b = (layout(document, TK, patches=p) for p in (there, wanted))
      for field in ("tokens_T", "learnt_length_T", "image_T", "starts_I", "learn_I"):
        got = getattr(with_patches(a, there, wanted), field)
        np.testing.assert_array_equal(got, getattr(b, field), err_msg=f"{field} {there} {wanted}")
        assert got.dtype == getattr(b, field).dtype


def test_a_folder_of_fewer_pixels_gives_the_batches_of_one_of_the_models(folders):
  few, own = (PreparedPipeline(TK, config(folders / name, **LARGER), keep_plans=False) for name in ("8", "16"))
  for step in (0, 3):
    assert few.tokens(step) == own.tokens(step) == (own.batch(step).segment_ids_BT > 0).sum()
    for name, x, y in zip(own.batch(step)._fields, few.batch(step), own.batch(step)):
      np.testing.assert_array_equal(x, y, err_msg=name)
  assert few.batch(0).images.shape[2:] == (16, 16, 3) and few.batch(0).images.any()


def test_sources_of_a_mixture_have_resolutions_of_their_own(folders, caplog):
  both = ((str(folders / "8"), 1.0), (str(folders / "16b"), 1.0))
  with caplog.at_level("INFO"):
    p = PreparedPipeline(TK, config(*both))  # the smaller model: the second is reduced
  assert "16b has pictures of 16 pixels: they are fitted to the model's 8 when read" in caplog.text
  assert "8 has pictures" not in caplog.text
  for step in range(4):
    batch = p.batch(step)
    assert batch.images.shape[2:] == (8, 8, 3) and all(share > 0 for share in p.shares(step).values())
    assert p.tokens(step) == (batch.segment_ids_BT > 0).sum()


def test_a_plan_of_one_resolution_is_not_anothers(folders):
  long = {n: v for n, v in LARGER.items() if n != "model__vision_tokenizer__resolution"}  # a row of the same size
  for changes in (long, LARGER, long):
    p = PreparedPipeline(TK, config(folders / "8", **changes))
    assert p.tokens(0) == (p.batch(0).segment_ids_BT > 0).sum()
  assert len(list((folders / "8" / "plans").iterdir())) >= 2


def test_the_vision_tokenizer_learns_from_folders_of_any_resolution(folders):
  both = ((str(folders / "8"), 1.0), (str(folders / "16b"), 1.0))
  pictures = TokenizerTask(config(*both, task="vision_tokenizer"), None).batch(0)
  assert pictures.shape == (8, 8, 8, 3) and len({p.tobytes() for p in pictures}) > 1


def test_features_and_filters_are_what_they_were_made_as(folders, tmp_path):
  shutil.copytree(folders / "8", tmp_path / "without")
  file = tmp_path / "without" / "prepared.json"
  file.write_text(json.dumps({n: v for n, v in json.loads(file.read_text()).items() if n != "patches"}))
  with pytest.raises(BadRequest, match=r"another patches \(None, not 16\)"):
    PreparedPipeline(TK, config(tmp_path / "without"))
  with pytest.raises(BadRequest, match="8 features was prepared with another resolution"):
    PreparedPipeline(TK, config(folders / "8 features", **LARGER))
  with pytest.raises(BadRequest, match="prepared with another pixels"):
    PreparedPipeline(TK, config(folders / "8", model__vision_tokenizer__pixels={"resample": "nearest"}, **LARGER))

"""Data sets as TFDS keeps them."""

import io
import json
import pickle
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from orthus_jax.data.images import load_image
from orthus_jax.data.look import recognised
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.tfds import Tfds
from orthus_jax.errors import BadRequest

F = tfds.features


def picture(n, mode="RGB"):
  if mode == "P":  # TFDS would show the palette's numbers
    image = PIL.Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, n, n + 1, n + 2])
  else:
    image = PIL.Image.new(mode, (8, 8), (n, n + 1, n + 2, 255)[: len(mode)])
  data = io.BytesIO()
  image.save(data, "png")
  data.seek(0)
  return data


class Captions(tfds.core.GeneratorBasedBuilder):
  """Pictures with up to two captions, and classes."""

  name = "toy_captions"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="a"), tfds.core.BuilderConfig(name="b")]

  def _info(self):
    features = {
        "captions": F.Sequence({"id": np.int64, "text": F.Text()}), "image": F.Image(encoding_format="png"), "label": KIND,
        "image/id": np.int64, "mask": F.Image(shape=(None, None, 1), encoding_format="png"), "pages": F.Sequence(F.Text()),
    }  # fmt: skip
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(4), "val": self._generate_examples(1)}

  def _generate_examples(self, count):
    for n in range(count):
      captions = [{"id": k, "text": f"{'é'}{n}{k}"} for k in range(n % 3)]
      yield n, {
          "captions": captions, "image": picture(40 * n, ("RGB", "P", "RGB", "RGB")[n]), "label": "a_dog", "image/id": n,
          "mask": picture(0, "L"), "pages": [],
      }  # fmt: skip


KIND = F.ClassLabel(names=["cat", "a_dog"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  for file_format in ("array_record", "parquet"):
    for config in ("a", "b"):
      Captions(data_dir=root / file_format, config=config, file_format=file_format).download_and_prepare()
  return root


def said(document):
  return [(getattr(s, "text", None), s.learn) for s in document.segments]


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_pairs_of_a_picture_and_its_first_caption(made, file_format, caplog):
  place = made / file_format
  layout = Tfds(place, Options(argument="toy_captions/a", text=("captions/text",)))
  assert layout.remarks.lines() == [
      "features of several texts a record, of which the first is read: 1 (captions/text)"
  ]  # fmt: skip
  source = LayoutSource(pickle.loads(pickle.dumps(layout)), resolution=8, max_bad_share=1)
  documents = [source[i] for i in range(len(source))]
  assert [d is None for d in documents] == [True, True, False, False, False, False, True, True], "some have no caption"
  assert said(documents[2]) == [("é10", False), (None, True)] and said(documents[5]) == [(None, False), ("é20", True)]
  assert documents[2].images[0].pixels[0, 0].tolist() == [40, 41, 42], "a palette's colours"
  assert len({d.id for d in documents if d}) == 4 and documents[2].kind == "caption_to_image"
  assert layout.place(1) == ("toy_captions/a/1.0.0/train", "record 1")
  assert "tensorflow" not in sys.modules


def test_classes_are_told_by_name_where_a_record_has_no_caption(made):
  source = LayoutSource(Tfds(made / "array_record", Options(argument="toy_captions/a:1.0.0", pairs="to_image")), resolution=8)
  assert [source[i].texts[0].text for i in range(4)] == ["a dog", "é10", "é20", "a dog"]


def test_places_names_and_splits(made):
  one = made / "array_record" / "toy_captions" / "a" / "1.0.0"
  for place, argument in ((one, ""), (one.parent, ""), (one, "toy_captions"), (made / "array_record", "toy_captions:1.0.0/a")):
    assert len(Tfds(place, Options(argument=argument))) == 4
  assert list(recognised(made / "array_record")) == list(recognised(one)) == ["tfds"]
  assert len(Tfds(one, Options(split="val"))) == 1
  assert Tfds(one).fields() == {
      "captions/id": "list of Tensor", "captions/text": "list of text (the text)", "image": "image (the picture)",
      "image/id": "Tensor", "label": "class", "mask": "image", "pages": "list of text",
  }  # fmt: skip
  for argument, why in (
      ("", "several data sets .toy_captions/a/1.0.0, toy_captions/b/1.0.0.: say which"),
      ("toy_captions", "several data sets"), ("toy_captions/c", "no features.json.*called toy_captions/c"),
      ("toy_captions/a:2.0.0", "no features.json"), ("other", "no features.json"),
  ):  # fmt: skip
    with pytest.raises(BadRequest, match=why):
      Tfds(made / "array_record", Options(argument=argument))
  for options, why in (
      (Options(split="test"), "no split 'test': choose train, val by --split"),
      (Options(text=("title",)), "needs an image and a text called title; it has .*label .class.*choose the text"),
  ):
    with pytest.raises(BadRequest, match=why):
      Tfds(one, options)
  with pytest.raises(BadRequest, match="there is no folder"):
    Tfds(one / "nowhere")


@pytest.fixture
def copied(made, tmp_path):
  def copy(file_format):
    for file in (made / file_format / "toy_captions" / "a" / "1.0.0").iterdir():
      (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path

  return copy


def test_tfrecord_is_refused_unless_converted_files_lie_beside(copied):
  folder = copied("array_record")
  info = json.loads((folder / "dataset_info.json").read_text())
  (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with pytest.raises(BadRequest, match="is tfrecord, which can't be read at random: convert it by .*out_file_format=array_rec"):
    Tfds(folder)
  told = info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
  (folder / "dataset_info.json").write_text(json.dumps(told))
  assert len(Tfds(folder)) == 4


@pytest.mark.parametrize("file_format, how", [("array_record", "cut"), ("array_record", "gone"), ("parquet", "cut")])
def test_files_that_are_damaged_are_named(copied, file_format, how):
  folder = copied(file_format)
  (file,) = folder.glob("*train*")
  file.write_bytes(file.read_bytes()[:-20]) if how == "cut" else file.unlink()
  if file_format == "parquet":
    with pytest.raises(BadRequest, match="can't be read as Parquet"):
      Tfds(folder)
    return
  layout = Tfds(folder)
  assert len(layout) == 0 and layout.broken == [
      (str(file), "all of it", "it was cut short or damaged" if how == "cut" else "it isn't there")
  ]  # fmt: skip
  with pytest.raises(BadRequest, match="1 of 1 records are bad"):
    LayoutSource(layout, resolution=8)
  (folder / "features.json").write_text("{")
  with pytest.raises(BadRequest, match="can't be read as a TFDS data set"):
    Tfds(folder)


class Questions(tfds.core.GeneratorBasedBuilder):
  """Questions about pictures."""

  name = "toy_questions"
  VERSION = tfds.core.Version("2.0.0")

  def _info(self):
    features = {"picture": F.Image(encoding_format="png"), "question": F.Text(), "answers": F.Sequence(F.Text())}
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"validation": self._generate_examples()}

  def _generate_examples(self):
    yield 0, {"picture": picture(9), "question": "What?", "answers": ["It.", "That."]}


def test_questions(tmp_path):
  Questions(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  (document,) = LayoutSource(Tfds(tmp_path), resolution=8)
  assert said(document) == [(None, False), ("What?", False), ("It.", True)] and document.kind == "question"
  assert np.array_equal(document.images[0].pixels, load_image(picture(9).getvalue()))
  assert len(LayoutSource(Tfds(tmp_path, Options(text=("question",))), resolution=8)) == 2, "as a pair, where it is asked for"

"""What a published checkpoint's files say about text and pictures is done, or refused in one line."""

import dataclasses
import json

import numpy as np
import published
import pytest

from orthus_jax.config import PixelsConfig
from orthus_jax.data import images
from orthus_jax.data.documents import Document, Image, Text, interleaved
from orthus_jax.errors import BadRequest
from orthus_jax.interop.processor import Processor, read_pixels, read_tokenizer

P, R = 4, published.RESOLUTION
CODES = published.CODES
SEP, IMAGE, EOI, BOI = CODES + 7, CODES + 8, CODES + 4, CODES + 5


def picture(height=40, width=50, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return published.write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def processor(directory):
  return Processor.load(directory, published.model_config())


def load(tmp_path, *, config=None, **changes):
  return Processor.load(published.write(tmp_path, **changes), config or published.model_config())


def refusal(tmp_path, **changes) -> str:
  with pytest.raises(BadRequest) as e:
    load(tmp_path, **changes)
  assert "\n" not in str(e.value)
  return str(e.value).replace(str(tmp_path), "DIR")


def test_published_files_are_the_defaults(processor):
  assert processor.config == published.model_config()
  assert processor.padding_side == "left"
  t = processor.tokenizer
  assert (t.bos, t.pad, t.eos, t.eoi, t.boi, t.sep, t.image) == (0, 1, 2, EOI, BOI, SEP, IMAGE)
  assert t.image_codes == range(4, 4 + CODES)


def test_prompt_format(processor):
  t = processor.tokenizer
  d = processor.document("Compare <image> with <image> <image>", [picture()] * 3)
  assert [type(s) for s in d.segments] == [Text, Image, Text, Image, Text, Image]
  block = [BOI, *[IMAGE] * P, EOI]
  expected = [0, *t.encode("Compare "), *block, *t.encode(" with "), *block, *t.encode(" "), *block, SEP]
  inputs = processor.inputs([d])
  assert inputs.tokens_BT.tolist() == [expected]
  assert processor.inputs([d], respond=False).tokens_BT.tolist() == [expected[:-1]]
  assert inputs.values_IRRC.shape == (3, R, R, 3) and inputs.values_IRRC.dtype == np.float32


def test_batches_are_padded_on_the_left(processor):
  inputs = processor.inputs([Document((Text("a red house"),)), Document((Image(picture()),))])
  assert inputs.mask_BT.sum(axis=1).tolist() == [len(processor.tokenizer.encode("a red house")) + 2, P + 4]
  b = int(inputs.mask_BT.sum(axis=1).argmin())
  n = int(inputs.mask_BT[b].sum())
  assert inputs.tokens_BT[b, :-n].tolist() == [1] * (inputs.tokens_BT.shape[1] - n) != []
  assert inputs.tokens_BT[b, -n] == 0 and inputs.tokens_BT[b, -1] == SEP
  assert inputs.position_BT[b].tolist() == [0] * (inputs.tokens_BT.shape[1] - n) + list(range(n))
  assert len(inputs.values_IRRC) == 1
  with pytest.raises(BadRequest, match="at least one prompt"):
    processor.inputs([])


def test_padding_on_the_right_is_honoured(tmp_path):
  processor = load(tmp_path, tokens=dict(padding_side="right"))
  inputs = processor.inputs([Document((Text("a"),)), Document((Text("a" * 9),))])
  n = int(inputs.mask_BT[0].sum())
  assert inputs.tokens_BT[0, n - 1] == SEP and set(inputs.tokens_BT[0, n:]) == {1}
  assert "padding_side='up'" in refusal(tmp_path, tokens=dict(padding_side="up"))


def test_markers_must_match_pictures():
  with pytest.raises(BadRequest, match="has 1 of '<image>' for 2 pictures"):
    interleaved("what is <image>", [picture()] * 2)
  assert interleaved("<image>", [picture()]).segments == (Image(picture()),)


def test_special_tokens_are_called_what_the_files_call_them(tmp_path):
  directory = published.write(tmp_path, tokens=dict(sep_token="<reserved08705>", eos_token=None))
  assert read_tokenizer(directory).sep == SEP - 1
  for place in ("extra_special_tokens", "model_specific_special_tokens"):
    published.write(tmp_path, tokens={"sep_token": None, place: dict(sep_token="<reserved08705>")})
    assert read_tokenizer(directory).sep == SEP - 1
  published.write(tmp_path, tokens=dict(sep_token=None))
  assert read_tokenizer(directory).sep == SEP
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(dict(sep_token=dict(content="<reserved08705>"))))
  assert read_tokenizer(directory).sep == SEP - 1
  published.write(tmp_path, tokens=dict(image_token=None), processor=dict(image_token="<reserved08705>"))
  (tmp_path / "special_tokens_map.json").unlink()
  assert read_tokenizer(directory).image == SEP - 1
  published.write(tmp_path, tokens=dict(sep_token="<nowhere>"))
  with pytest.raises(BadRequest, match="no token '<nowhere>'"):
    read_tokenizer(directory)
  published.write(tmp_path, tokens=dict(sep_token=5))
  with pytest.raises(BadRequest, match="sep_token=5"):
    read_tokenizer(directory)


@pytest.mark.parametrize("changes", [dict(add_bos_token=False), dict(add_eos_token=True)])
def test_other_prompt_formats_are_refused(tmp_path, changes):
  assert "tokenizer_config.json asks for prompts" in refusal(tmp_path, tokens=changes)


def test_a_tokenizer_that_lays_prompts_out_otherwise_is_refused(tmp_path):
  def changed(edit) -> str:
    spec = json.loads((published.write(tmp_path) / "tokenizer.json").read_text())
    edit(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(BadRequest) as e:
      Processor.load(tmp_path, published.model_config())
    return str(e.value)

  assert "its post_processor differs" in changed(lambda s: s["post_processor"]["single"].pop(0))
  image = next(i for i, t in enumerate(json.loads(published.tokenizer().to_str())["added_tokens"]) if t["id"] == IMAGE)
  assert "<image> with lstrip" in changed(lambda s: s["added_tokens"][image].update(lstrip=True))


def test_image_processing_is_read(tmp_path):
  published.write(tmp_path, image=dict(resample=3, rescale_factor=1 / 255, image_mean=[0.5, 0.4, 0.3], image_std=0.5))
  read = read_pixels(tmp_path, resolution=R)
  assert read == PixelsConfig(resample="bicubic", scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))
  processor = Processor.load(tmp_path, published.model_config())
  assert processor.config.vision_tokenizer.pixels == read
  values = processor.inputs([Document((Image(picture()),))]).values_IRRC
  np.testing.assert_array_equal(values[0], images.to_model(images.fit(picture(), R, read), read))
  published.write(tmp_path, image=dict(do_rescale=False, do_normalize=False))
  assert read_pixels(tmp_path, resolution=R) == PixelsConfig(scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
  published.write(tmp_path, image=dict(size=R, crop_size=R, rescale_factor=None, image_processor_type=None))
  assert read_pixels(tmp_path, resolution=R) == PixelsConfig()


def test_the_newer_place_of_the_image_processor(tmp_path):
  nested = published.IMAGE_PROCESSOR | {"resample": 2}
  published.write(tmp_path, processor=dict(image_processor=nested))
  with pytest.raises(BadRequest, match="differ about pictures"):
    read_pixels(tmp_path, resolution=R)
  (tmp_path / "preprocessor_config.json").unlink()
  assert read_pixels(tmp_path, resolution=R).resample == "bilinear"
  (tmp_path / "processor_config.json").unlink()
  with pytest.raises(BadRequest, match="no preprocessor_config.json"):
    read_pixels(tmp_path, resolution=R)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(do_resize=False), "do_resize=False"),
        (dict(do_center_crop=False), "do_center_crop=False"),
        (dict(do_pad=True), "do_pad=True"),
        (dict(size={"height": 32, "width": 32}), "size={'height'"),
        (dict(size={"shortest_edge": 32, "longest_edge": 64}), "size={'shortest_edge'"),
        (dict(size={"shortest_edge": 31}), "only a shortest_edge of the model's 32 pixels"),
        (dict(size={"shortest_edge": 40}), "only a shortest_edge of the model's 32 pixels"),
        (dict(crop_size={"height": 32, "width": 48}), "crop_size="),
        (dict(crop_size=16), "crop_size=16"),
        (dict(resample=9), "resample=9"),
        (dict(resample="lanczos"), "resample='lanczos'"),
        (dict(resample=1.0), "resample=1.0, but it must be one of 0..5"),
        (dict(resample=True), "resample=True"),
        (dict(do_normalize="false"), "do_normalize='false', but it must be true or false"),
        (dict(offset=True), "offset=True, but that can't be done here"),
        (dict(rescale_factor="x"), "scale='x'"),
        (dict(rescale_factor=0), "scale=0.0 must be at least"),
        (dict(image_mean=[1.0, 1.0]), "expected 3 items"),
        (dict(image_processor_type="CLIPImageProcessor", rescale_factor=None), "whose rescale_factor isn't known"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, changes, reason):
  message = refusal(tmp_path, image=changes)
  assert reason in message


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "processor_config.json"])
def test_broken_files_are_named(tmp_path, name):
  for content, reason in (("{", "can't be read as JSON"), ("[]", "must hold fields")):
    published.write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BadRequest, match=f"{name} {reason}"):
      Processor.load(tmp_path, published.model_config())


def test_an_image_processor_without_fields_is_refused(tmp_path):
  message = refusal(tmp_path, processor=dict(image_processor=[1]))
  assert message == "DIR/processor_config.json must hold fields of an image processor, got a list"


def test_files_of_another_model_are_refused(tmp_path):
  assert "image_seq_length=1024" in refusal(tmp_path, processor=dict(image_seq_length=1024))
  assert "image codes range(4, 28)" in refusal(tmp_path, config=published.model_config(codes=32))
  small = dataclasses.replace(published.model_config().transformer, vocab_size=100)
  small = dataclasses.replace(published.model_config(), transformer=small)
  assert "the model 100 in all" in refusal(tmp_path, config=small)

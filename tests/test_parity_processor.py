"""The published tokenizer and image processor against `transformers`', on real photographs."""

import json

import chameleon
from measured import RECORDS
import numpy as np
from PIL import Image
import published
import pytest

from orthus_jax.data import images
from orthus_jax.interop.processor import Processor, read_pixels

RESOLUTION = 512


def photographs() -> dict[str, Image.Image]:
  """Photographs and a logo in several shapes and modes."""
  data = chameleon.reference("skimage.data")
  rocket, coffee = Image.fromarray(data.rocket()), Image.fromarray(data.coffee())
  faded = coffee.convert("RGBA")
  faded.putalpha(Image.linear_gradient("L").resize(coffee.size))
  return {
      "square": Image.fromarray(data.astronaut()),
      "wide": coffee,
      "tall": rocket.transpose(Image.Transpose.ROTATE_90),
      "strip": rocket.crop((3, 100, 640, 211)),
      "tiny": coffee.resize((61, 47)),
      "grey": Image.fromarray(data.camera()).crop((0, 0, 512, 301)),
      "transparent logo": Image.fromarray(data.logo()),
      "faded": faded,
      "grey and faded": faded.convert("LA"),
      "palette": coffee.quantize(64),
  }


@pytest.fixture(scope="module")
def theirs():
  """Their image processor with a file's settings; the one that resamples with Pillow, as Lanczos is published."""
  transformers = chameleon.reference("transformers")
  return lambda **settings: transformers.ChameleonImageProcessorPil(**settings)


def ours_of(picture, pixels, resolution, tmp_path):
  picture.save(tmp_path / "picture.png")
  fitted = images.fit(images.load_image(tmp_path / "picture.png"), resolution, pixels)
  return images.to_model(fitted, pixels)


def test_photographs(theirs, tmp_path):
  (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ChameleonImageProcessor"}))
  pixels = read_pixels(tmp_path, resolution=RESOLUTION)
  worst = 0.0
  for name, picture in photographs().items():
    value = ours_of(picture, pixels, RESOLUTION, tmp_path)
    expected = theirs()(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    assert value.shape == expected.shape == (RESOLUTION, RESOLUTION, 3) and expected.std() > 0.1, name
    worst = max(worst, float(np.abs(value - expected).max()))
    assert worst <= 1e-6, name
  RECORDS["image processor, largest difference of a pixel value"] = (worst, 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        dict(resample=3),
        dict(resample=4),
        dict(rescale_factor=1 / 255, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2]),
        dict(do_normalize=False),
    ],
)
def test_files_that_say_otherwise(theirs, tmp_path, settings):
  settings = dict(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}) | settings
  written = settings | dict(image_processor_type="ChameleonImageProcessor")
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
  pixels = read_pixels(tmp_path, resolution=48)
  picture = photographs()["wide"]
  expected = theirs(**settings)(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
  np.testing.assert_allclose(ours_of(picture, pixels, 48, tmp_path), expected, atol=1e-6)


def test_prompts(tmp_path):
  transformers = chameleon.reference("transformers")
  directory = published.write(tmp_path)
  theirs = transformers.ChameleonProcessor(
      image_processor=transformers.ChameleonImageProcessorPil(**published.IMAGE_PROCESSOR),
      tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
      image_seq_length=published.PROCESSOR["image_seq_length"],
  )
  ours = Processor.load(directory, published.model_config())
  pictures = list(photographs().values())[:4]
  pixels = [np.asarray(p.convert("RGB")) for p in pictures]
  prompts = [
      ("<image>What is in this picture?", 1),
      ("Compare the first <image> with the second\n<image> <image>  one: 1024 things, é and 漢.", 3),
      ("a red house by the sea", 0),
      (" <image>", 1),
  ]
  takes = np.cumsum([0, *(n for _, n in prompts)])
  documents = [ours.document(t, (pixels * 2)[a:][:n]) for (t, n), a in zip(prompts, takes)]
  used = (pictures * 2)[: takes[-1]]
  for respond in (True, False):
    expected = theirs(
        images=used, text=[t for t, _ in prompts], padding=True, return_tensors="np", return_for_text_completion=not respond
    )
    inputs = ours.inputs(documents, respond=respond)
    np.testing.assert_array_equal(inputs.tokens_BT, expected.input_ids)
    np.testing.assert_array_equal(inputs.mask_BT, expected.attention_mask == 1)
    assert not inputs.mask_BT[:, 0].all() and inputs.mask_BT[:, -1].all(), "padded on the left"
    np.testing.assert_allclose(inputs.values_IRRC, expected.pixel_values.transpose(0, 2, 3, 1), atol=1e-6)
  # Their own files, as they are written today, say the same.
  theirs.save_pretrained(tmp_path / "saved")
  assert not (tmp_path / "saved" / "preprocessor_config.json").exists(), "it was the older layout that was read"
  again = Processor.load(tmp_path / "saved", published.model_config())
  assert again.config == ours.config and again.padding_side == ours.padding_side
  for value, expected in zip(again.inputs(documents), ours.inputs(documents)):
    np.testing.assert_array_equal(value, expected)
  for code, id in theirs_codes(theirs.tokenizer).items():
    assert ours.tokenizer.image_codes[code] == id == code + 4


def theirs_codes(tokenizer) -> dict[int, int]:
  modeling = chameleon.reference("transformers.models.chameleon.modeling_chameleon")
  return modeling.ChameleonImageVocabularyMapping(tokenizer.get_vocab()).img2bpe

"""Pictures from outside: every kind read right, fitted, scaled, written; bad ones refused by name."""

import io
import subprocess
import sys

from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from orthus_jax.config import PixelsConfig
from orthus_jax.data import images, picture_sheet
from orthus_jax.errors import BadRequest

PUBLISHED = PixelsConfig()


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, format=format, **options)
  return buffer.getvalue()


def pixel(image, format="PNG", **options):
  pixels = images.load_image(encoded(image, format, **options))
  assert pixels.dtype == np.uint8 and pixels.shape == (*image.size[::-1], 3)
  return pixels[0, 0].tolist()


def test_reads_rgb_from_path_and_bytes(tmp_path):
  pixels = noise(5, 7)
  path = images.save_png(tmp_path / "a.png", pixels)
  for source in (path, str(path), path.read_bytes()):
    assert np.array_equal(images.load_image(source), pixels)
  assert images.load_image(path).flags.writeable


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("RGBA", (2, 3), (200, 0, 100, 0)), [255, 255, 255]),
        (Image.new("RGBA", (2, 3), (200, 0, 100, 255)), [200, 0, 100]),
        (Image.new("RGBA", (2, 3), (200, 0, 100, 51)), [244, 204, 224]),
        (Image.new("LA", (2, 3), (0, 51)), [204, 204, 204]),
        (Image.new("L", (2, 3), 77), [77, 77, 77]),
        (Image.new("1", (2, 3), 1), [255, 255, 255]),
        (Image.fromarray(np.full((3, 2), 65535, np.uint16)), [255, 255, 255]),
        (Image.fromarray(np.full((3, 2), 25700, np.uint16)), [100, 100, 100]),
    ],
)
def test_modes(image, expected):
  assert pixel(image) == expected


def test_palettes_and_keyed_transparency():
  palette = Image.new("P", (2, 3), 1)
  palette.putpalette([0, 0, 0, 10, 200, 30])
  assert pixel(palette) == [10, 200, 30]
  assert pixel(palette, transparency=1) == [255, 255, 255]
  assert pixel(palette, transparency=0) == [10, 200, 30]
  assert pixel(palette, "GIF") == [10, 200, 30]
  assert pixel(Image.new("RGB", (2, 3), (1, 2, 3)), transparency=(1, 2, 3)) == [255, 255, 255]


def test_other_depths_and_inks():
  red = pixel(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
  assert np.allclose(red, [255, 0, 0], atol=12)
  for values, expected in [(65535, 255), (0, 0)]:
    assert pixel(Image.fromarray(np.full((3, 2), values, np.int32)), "TIFF") == [expected] * 3
  with pytest.raises(BadRequest, match="16 bits"):
    pixel(Image.fromarray(np.full((3, 2), 70000, np.int32)), "TIFF")
  with pytest.raises(BadRequest, match="floating-point"):
    pixel(Image.fromarray(np.zeros((3, 2), np.float32)), "TIFF")


def test_exif_orientation():
  image = Image.fromarray(np.kron(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), np.ones((16, 16, 1), np.uint8)))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned a quarter clockwise
  pixels = images.load_image(encoded(image, "JPEG", exif=exif, quality=95))
  assert pixels.shape == (32, 16, 3)
  assert pixels[4, 8, 0] > 200 and pixels[28, 8, 2] > 200


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "doesn't exist"),
        (b"", "format"),
        (b"not a picture", "format"),
        (images.png_bytes(noise(20, 20))[:400], "truncated"),
        (b"P6 0 5 255\n", "format|no pixels"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, reason):
  path = tmp_path / "some.png"
  if content is not None:
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=reason):
      images.load_image(content)
  with pytest.raises(BadRequest, match=f"some.png.*({reason})"):
    images.load_image(path)
  with pytest.raises(BadRequest, match=tmp_path.name):
    images.load_image(tmp_path)


def test_zero_sized_picture(tmp_path, monkeypatch):
  path = images.save_png(tmp_path / "empty.png", noise(2, 2))
  monkeypatch.setattr(Image, "open", lambda _: Image.new("RGB", (0, 4)))
  with pytest.raises(BadRequest, match="empty.png.*no pixels"):
    images.load_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
  path = tmp_path / "bomb.png"
  Image.new("1", (12_000, 9_000)).save(path)
  small = encoded(Image.new("L", (11, 10)))
  monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
  with pytest.raises(BadRequest, match="bomb.png.*12000x9000"):
    images.load_image(path)
  with pytest.raises(BadRequest, match="more than the 100 allowed"):
    images.load_image(small, max_pixels=100)


def test_bombs_beyond_pillows_own_limit(tmp_path):
  # 60000x60000 by its header alone.
  data = bytearray(encoded(Image.new("L", (1, 1))))
  data[16:24] = (60_000).to_bytes(4, "big") * 2
  (tmp_path / "bomb.png").write_bytes(data)
  with pytest.raises(BadRequest, match="bomb.png"):
    images.load_image(tmp_path / "bomb.png")


def whole_then_cropped(pixels, resolution):
  height, width = pixels.shape[:2]
  short = min(height, width)
  size = [int(resolution * width / short), int(resolution * height / short)]
  whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
  top, left = (size[1] - resolution) // 2, (size[0] - resolution) // 2
  return whole[top : top + resolution, left : left + resolution]


@settings(deadline=None)
@given(short=st.integers(1, 60), ratio=st.floats(1, 7.9), tall=st.booleans(), resolution=st.integers(1, 70))
def test_fit_is_resize_then_centre_crop(short, ratio, tall, resolution):
  size = (int(short * ratio), short) if tall else (short, int(short * ratio))
  pixels = noise(*size)
  fitted = images.fit(pixels, resolution, PUBLISHED)
  assert fitted.dtype == np.uint8 and fitted.shape == (resolution, resolution, 3)
  assert np.array_equal(fitted, whole_then_cropped(pixels, resolution))


@pytest.mark.parametrize("shape", [(10, 200), (200, 10), (9, 100), (33, 500)])
def test_fit_of_strips_is_the_same(shape):
  smooth = np.asarray(Image.fromarray(noise(6, 6)).resize(shape[::-1], Image.Resampling.BICUBIC))
  expected = whole_then_cropped(smooth, 48).astype(int)
  assert np.abs(images.fit(smooth, 48, PUBLISHED) - expected).max() <= 4
  assert expected.std() > 20


def test_fit_leaves_the_right_size_alone():
  pixels = noise(32, 32)
  assert images.fit(pixels, 32, PUBLISHED) is pixels


def test_fit_of_a_strip_is_cheap():
  assert images.fit(np.zeros((1, 60_000, 3), np.uint8), 512, PUBLISHED).shape == (512, 512, 3)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "box", "hamming"])
def test_fit_with_other_filters(resample):
  pixels = noise(60, 40)
  expected = Image.fromarray(pixels).resize((20, 30), Image.Resampling[resample.upper()])
  assert np.array_equal(images.fit(pixels, 20, PixelsConfig(resample=resample)), np.asarray(expected)[5:25])


def test_fit_refuses():
  with pytest.raises(BadRequest, match="resolution of 0"):
    images.fit(noise(2, 2), 0, PUBLISHED)
  with pytest.raises(BadRequest, match="float32"):
    images.fit(noise(2, 2).astype(np.float32), 2, PUBLISHED)


@pytest.mark.parametrize("xp", [np, jnp])
def test_scaling_round_trip(xp):
  pixels = xp.arange(256, dtype=xp.uint8).reshape(2, 128)
  values = images.to_model(pixels, PUBLISHED)
  assert values.dtype == xp.float32 and isinstance(values, type(pixels))
  assert float(values[0, 0]) == -1 and float(values[1, -1]) == pytest.approx(255 * 0.0078 - 1)
  back = images.from_model(values, PUBLISHED)
  assert back.dtype == xp.uint8 and isinstance(back, type(pixels)) and bool((back == pixels).all())


@pytest.mark.parametrize("xp", [np, jnp])
def test_other_scales_per_channel(xp):
  config = PixelsConfig(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
  pixels = xp.asarray(noise(3, 4))
  values = images.to_model(pixels, config)
  assert values.dtype == xp.float32
  expected = (np.asarray(pixels) / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  back = images.from_model(values, config)
  assert back.dtype == xp.uint8 and bool((back == pixels).all())


def test_from_model_rounds_and_clips():
  values = np.array([-3, -1 - 1e-6, -1 + 0.0078 * 2.6, 1, 40], np.float32)
  assert images.from_model(values, PUBLISHED).tolist() == [0, 0, 3, 255, 255]


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_png_is_lossless(pixels):
  assert np.array_equal(images.load_image(images.png_bytes(pixels)), pixels)


def test_save_png_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = images.save_png(tmp_path / "new" / "a.png", noise(4, 4))
  before = path.read_bytes()

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(images.os, "replace", fail)
  with pytest.raises(OSError):
    images.save_png(path, noise(4, 4, seed=1))
  assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_grid_places_tiles():
  tiles = [np.full((32, 32, 3), v, np.uint8) for v in (0, 50, 100)]
  sheet = picture_sheet.grid(tiles, 2)
  assert sheet.dtype == np.uint8 and sheet.shape == (2 * 96 + 3 * 8, 2 * 96 + 3 * 8, 3)
  assert [sheet[56, 56, 0], sheet[56, 160, 0], sheet[160, 56, 0], sheet[160, 160, 0]] == [0, 50, 100, 255]
  one = noise(32, 32)
  assert np.array_equal(picture_sheet.grid([one], 5)[8:-8, 8:-8], one.repeat(3, 0).repeat(3, 1))
  odd = noise(40, 50)
  assert np.array_equal(picture_sheet.grid([odd], 1)[8:-8, 8:-8], odd.repeat(3, 0).repeat(3, 1))
  large = noise(100, 130)
  assert np.array_equal(picture_sheet.grid([large], 1)[8:-8, 8:-8], large)


def test_grid_captions_stay_under_their_tiles():
  white = np.full((32, 32, 3), 255, np.uint8)
  captions = ["", "a large red circle at the top left and a word" + "o" * 60, "x\n" * 30]
  sheet = picture_sheet.grid([white] * 3, 3, captions)
  ink = (sheet < 128).any(-1)
  columns = [ink[:, 8 + i * 104 : 104 + i * 104] for i in range(3)]
  assert not columns[0].any() and columns[1].any() and columns[2].any()
  assert ink.sum() == sum(c.sum() for c in columns), "nothing runs into a gap"
  assert not ink[: 8 + 96].any()
  assert sheet.shape[0] <= 96 + 2 * 8 + 4 + 8 * 18
  assert picture_sheet.grid([white], 1, [captions[1]]).shape[0] > picture_sheet.grid([white], 1, ["a"]).shape[0]


@pytest.mark.parametrize("arguments", [([], 1), ([noise(2, 2)], 0), ([noise(2, 2)], 1, ["a", "b"])])
def test_grid_refuses(arguments):
  with pytest.raises(BadRequest):
    picture_sheet.grid(*arguments)


def test_imports_without_jax():
  code = "import sys, orthus_jax.data.images, orthus_jax.data.sources.jsonl; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)

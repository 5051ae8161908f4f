"""Pictures beside broken or oversized metadata: the pixels are read, turned as a sound orientation says."""

import io
import os
import struct
import zlib

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin
import pytest

from orthus_jax.data import images, picture_metadata
from orthus_jax.errors import BadRequest

EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "200"))
PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
PICTURE = Image.fromarray(PIXELS)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description %s/></x:xmpmeta>'


def encoded(kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  PICTURE.save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, at_end: bool = False) -> bytes:
  """A PNG file with more chunks, ahead of its pixels or behind them."""
  data = encoded("PNG")
  place = len(data) - 12 if at_end else 33
  return data[:place] + b"".join(chunks) + data[place:]


def exif(orientation: int = 6) -> Image.Exif:
  found = Image.Exif()
  found[0x010F], found[0x0112], found[0x0131] = "Maker", orientation, "software " * 5
  found[0x011A] = found[0x011B] = TiffImagePlugin.IFDRational(72, 1)
  found.get_ifd(0x8769)[0x829A] = TiffImagePlugin.IFDRational(1, 60)
  found.get_ifd(0x8769)[0x927C] = b"maker note" * 9
  return found


LONG = zlib.compress(bytes(3 << 20))
TOO_LONG = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "many": b"".join(chunk(b"tEXt", b"k\0" + b"x" * (8 << 20)) for _ in range(9)),
    "cut zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG[:50]),
    "no keyword": chunk(b"zTXt", b"") + chunk(b"iTXt", b"\0") + chunk(b"tEXt", b""),
    "pHYs": chunk(b"pHYs", b"\0"),
    "gAMA": chunk(b"gAMA", b""),
    "cHRM": chunk(b"cHRM", bytes(7)),
    "sRGB": chunk(b"sRGB", b""),
    "bad checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("what", TOO_LONG)
def test_png_pixels_need_no_texts_and_profiles(tmp_path, what, at_end):
  data = png(TOO_LONG[what], at_end=at_end)
  np.testing.assert_array_equal(images.load_image(data), PIXELS)
  (tmp_path / "a.png").write_bytes(data)
  np.testing.assert_array_equal(images.load_image(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("turn", [
    chunk(b"eXIf", exif().tobytes()[6:]),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % b'tiff:Orientation="6"'),
    chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  10\n" + exif().tobytes().hex().encode())),
])  # fmt: skip
def test_png_is_turned_beside_a_text_that_is_too_long(turn):
  upright = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))
  for data in (png(turn), png(turn, TOO_LONG["zTXt"])):
    np.testing.assert_array_equal(images.load_image(data), upright)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_of_pixels_is_refused_beside_long_texts():
  head = struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + TOO_LONG["zTXt"] + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
  with pytest.raises(BadRequest, match="has 12000x12000 pixels"):
    images.load_image(data)


ODD_VALUES = {
    "0/0": (0x011A, 5, struct.pack(">II", 0, 0)),
    "below zero": (0x011A, 10, struct.pack(">ii", -72, 1)),
    "-5/0": (0x011A, 10, struct.pack(">ii", -5, 0)),
    "NaN": (0x011A, 11, struct.pack(">f", float("nan"))),
    "text for a number": (0x011A, 2, b"72\0\0"),
    "number for a text": (0x010F, 5, struct.pack(">II", 1, 1)),
    "a ratio for a unit": (0x0128, 5, struct.pack(">II", 2, 1)),
}


@pytest.mark.parametrize("odd", ODD_VALUES)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_orientation_holds_beside_odd_values(kind, odd):
  entries = sorted([(0x0112, 3, struct.pack(">H", 6)), ODD_VALUES[odd]])
  head, values = b"MM\0*" + struct.pack(">IH", 8, 2), b""
  for tag, form, value in entries:
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", 38 + len(values))
    values += value if len(value) > 4 else b""
    head += struct.pack(">HHI", tag, form, len(value) if form == 2 else 1) + place
  block = b"Exif\0\0" + head + bytes(4) + values
  lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
  want = images.load_image(encoded(kind, exif=exif(6).tobytes(), **lossless))
  np.testing.assert_array_equal(images.load_image(encoded(kind, exif=block, **lossless)), want)
  assert want.shape == (28, 20, 3) and picture_metadata.orientation(block) == 6


def test_tiff_pixels_need_no_other_tags(tmp_path):
  data = encoded("TIFF", exif=exif(3), compression="tiff_lzw")
  at = data.find(struct.pack("<HHI", 0x010F, 2, 6))  # the maker's name, ahead of where the pixels are said to lie
  broken = data[: at + 8] + struct.pack("<I", 2**31 - 1) + data[at + 12 :]
  (tmp_path / "a.tif").write_bytes(broken)
  np.testing.assert_array_equal(images.load_image(tmp_path / "a.tif"), PIXELS[::-1, ::-1])


def _places(kind: str, data: bytes) -> list[int]:
  """Bytes of a file that pixels and orientation don't need."""
  places, at = [], {"PNG": 8, "JPEG": 2, "MPO": 2, "WEBP": 12}.get(kind, 0)
  if kind == "PNG":
    while at < len(data):
      end = at + 12 + int.from_bytes(data[at : at + 4], "big")
      places += range(at + 8, end) if data[at + 4] & 0x20 and data[at + 4 : at + 8] != b"eXIf" else ()
      at = end
  elif kind == "WEBP":
    while at < len(data):
      size = int.from_bytes(data[at + 4 : at + 8], "little")
      places += range(at + 8, at + 8 + size) if data[at : at + 4] in (b"EXIF", b"XMP ", b"ICCP") else ()
      at += 8 + size + size % 2
  else:
    while data[at + 1] != 0xDA:
      end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
      places += range(at + 4, end) if 0xE1 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE else ()
      at = end
  tiff = data.find(b"Exif\0\0") + 6 if kind in ("JPEG", "MPO") else max(data.find(b"MM\0*"), data.find(b"II*\0"))
  entry = max(data.find(b"\x01\x12\x00\x03\x00\x00\x00\x01"), data.find(b"\x12\x01\x03\x00\x01\x00\x00\x00"))
  needed = {*range(tiff - 6, tiff + 10), *range(entry, entry + 12)}
  return [p for p in places if p not in needed]


def _rich() -> dict[str, bytes]:
  info = PngImagePlugin.PngInfo()
  info.add_text("z", "c" * 300, zip=True)
  info.add_itxt("i", "d" * 30, zip=True)
  profile = bytes(range(256)) * 3
  options = {"exif": exif().tobytes(), "icc_profile": profile}
  resources = b"Photoshop 3.0\0" + b"".join(
      b"8BIM" + struct.pack(">HBBI", code, 0, 0, 16) + bytes(range(16)) for code in (0x3ED, 0x404)
  )
  jpeg = encoded("JPEG", xmp=XMP % b"", comment=b"hello", dpi=(72, 72), **options)
  segment = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
  return {
      "PNG": encoded("PNG", pnginfo=info, dpi=(72, 72), **options),
      "JPEG": jpeg[:2] + segment + jpeg[2:],
      "MPO": encoded("MPO", save_all=True, append_images=[PICTURE.copy()], **options),
      "WEBP": encoded("WEBP", lossless=True, xmp=XMP % b"", **options),
  }


RICH = _rich()
PLACES = {kind: _places(kind, data) for kind, data in RICH.items()}
WANT = {kind: images.load_image(data) for kind, data in RICH.items()}


HARM = st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(st.sampled_from([0, 255]), st.integers(0, 255)))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(RICH)), st.booleans(), st.lists(HARM, min_size=1))
def test_no_harm_to_other_metadata_changes_the_picture(kind, mended, harms):
  data, places = bytearray(RICH[kind]), PLACES[kind]
  for share, value in harms:
    data[places[int(share * len(places))]] = value
  if kind == "PNG" and mended:  # checksums that agree
    at = 8
    while at < len(data):
      end = at + 12 + int.from_bytes(data[at : at + 4], "big")
      data[end - 4 : end] = struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
      at = end
  np.testing.assert_array_equal(images.load_image(bytes(data)), WANT[kind])

"""A folder of pictures with a JSON-lines file; what is bad is skipped, counted, named, and too much of it stops."""

import json
import logging
import pickle
import re

import numpy as np
import PIL.Image
import pytest
from sources import folder_source

from orthus_jax.config import PixelsConfig
from orthus_jax.data.images import fit, load_image, save_png
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.jsonl import parse_row
from orthus_jax.errors import BadRequest

R = 16
PAIR = {"image": "in/b.png", "text": "a blue one"}
MIXED = {"segments": [{"text": "look", "learn": False}, {"image": "a.png"}, {"text": "segments: red", "learn": True}]}


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  save_png(tmp_path / "a.png", rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
  save_png(tmp_path / "in" / "b.png", rng.integers(0, 256, (R, R, 3), dtype=np.uint8))
  (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
  return tmp_path


def write(folder, *rows, name="metadata.jsonl"):
  lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
  (folder / name).write_bytes(b"\n".join(lines) + b"\n")
  return folder


def test_pair_yields_both_directions(folder):
  source = folder_source(write(folder, PAIR), resolution=R)
  to_image, to_text = list(source)
  pixels = load_image(folder / "in" / "b.png")
  assert (to_image.kind, to_text.kind) == ("caption_to_image", "image_to_caption")
  assert [s.learn for s in to_image.segments] == [s.learn for s in to_text.segments] == [False, True]
  assert to_image.texts[0].text == to_text.texts[0].text == "a blue one"
  assert to_image.segments[0] is to_image.texts[0] and to_text.segments[0] is to_text.images[0]
  for d in (to_image, to_text):
    assert np.array_equal(d.images[0].pixels, pixels)
  assert to_image.id != to_text.id


@pytest.mark.parametrize(
    "pairs, kinds",
    [
        ("both", ["caption_to_image", "image_to_caption", "interleaved", "caption_to_image", "image_to_caption"]),
        ("to_image", ["caption_to_image", "interleaved", "caption_to_image"]),
        ("to_text", ["image_to_caption", "interleaved", "image_to_caption"]),
    ],
)
def test_pairs_option(folder, pairs, kinds):
  tricky = {"text": "segments", "image": "a.png"}
  source = folder_source(write(folder, PAIR, MIXED, tricky), resolution=R, pairs=pairs)
  assert len(source) == len(kinds)
  assert [source[i].kind for i in range(len(source))] == kinds
  assert [source[i].kind for i in reversed(range(len(source)))] == kinds[::-1], "any order"
  assert len({d.id for d in source}) == len(kinds)


def test_interleaved(folder):
  (document,) = folder_source(write(folder, MIXED), resolution=R)
  assert [s.learn for s in document.segments] == [False, True, True]
  assert document.texts[1].text == "segments: red"
  assert np.array_equal(document.images[0].pixels, fit(load_image(folder / "a.png"), R, PixelsConfig()))


def test_real_photographs(tmp_path):
  data = pytest.importorskip("skimage.data")
  photographs = {"astronaut": data.astronaut, "cat": data.chelsea, "camera": data.camera, "coins": data.coins}
  for name, read in photographs.items():
    PIL.Image.fromarray(read()).save(tmp_path / f"{name}.jpg", quality=95)
  rows = [{"image": f"{name}.jpg", "text": f"a photograph: {name}"} for name in photographs]
  source = folder_source(write(tmp_path, *rows), resolution=64, pairs="to_image")
  for document, read in zip(source, photographs.values(), strict=True):
    pixels, original = document.images[0].pixels, read()
    assert pixels.shape == (64, 64, 3)
    # The centre of the picture, give or take JPEG's losses.
    height, width = original.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = original[top : top + edge, left : left + edge].reshape(edge, edge, -1)
    assert np.abs(pixels.mean((0, 1)) - square.mean((0, 1))).max() < 2


def test_blank_lines_byte_order_mark_and_line_numbers(folder):
  rows = [b"\xef\xbb\xbf" + json.dumps(PAIR).encode(), b"", b"  \r", json.dumps(MIXED, indent=None).encode() + b"\r"]
  source = folder_source(write(folder, *rows, name="x.jsonl"), "x.jsonl", resolution=R, pairs="to_text")
  assert [d.id for d in source] == ["x.jsonl:1:to_text", "x.jsonl:4"]


def test_a_line_of_a_byte_order_mark_alone_is_blank(folder):
  source = folder_source(write(folder, b"\xef\xbb\xbf\r", json.dumps(PAIR).encode()), resolution=R, pairs="to_text")
  assert [d.id for d in source] == ["metadata.jsonl:2:to_text"] and not source.bad.count


def test_last_line_needs_no_newline_and_text_may_be_any_unicode(folder):
  row = json.dumps({"image": "a.png", "text": "é 漢\u2028字"}, ensure_ascii=False)
  (folder / "metadata.jsonl").write_text(row, encoding="utf-8")
  assert folder_source(folder, resolution=R)[0].texts[0].text == "é 漢\u2028字"


def test_indices(folder):
  source = folder_source(write(folder, PAIR), resolution=R)
  assert source[np.int64(1)].kind == "image_to_caption"
  for index in (2, -1):
    with pytest.raises(IndexError):
      source[index]


def test_pickles_and_names_itself(folder):
  source = folder_source(write(folder, PAIR), resolution=R)
  again = pickle.loads(pickle.dumps(source))
  assert repr(again) == repr(source) and again[0] == source[0]
  kinds = ("both", "to_image", "to_text")
  assert len({repr(folder_source(folder, resolution=r, pairs=p)) for r in (R, 2 * R) for p in kinds}) == 6


BAD_ROWS = [
    (b"{", "isn't JSON"),
    (b"[" * 100_000, "isn't JSON"),
    (b'{"image": "a.png", "text": "\xff"}', "isn't UTF-8"),
    (b'["a.png"]', "JSON object, got list"),
    ({"image": "a.png", "text": "x", "caption": "y"}, "unknown: 'caption'"),
    ({"text": "x"}, "neither"),
    ({"image": "a.png", "segments": [{"text": "x"}]}, "both"),
    ({"text": "x", "segments": [{"text": "x"}]}, "takes no"),
    ({"image": "a.png"}, 'needs a "text"'),
    ({"image": "a.png", "text": " \n"}, "empty"),
    ({"image": "a.png", "text": None}, "must be a string"),
    (b'{"image": "a.png", "text": "\\ud800"}', "surrogate"),
    ({"image": 3, "text": "x"}, "must be a path"),
    ({"image": "", "text": "x"}, "must be a path"),
    ({"image": "/etc/a.png", "text": "x"}, "outside the folder"),
    ({"image": "in/../../a.png", "text": "x"}, "outside the folder"),
    ({"image": "gone.png", "text": "x"}, "gone.png.*doesn't exist"),
    ({"image": "in", "text": "x"}, "in' is no file"),
    ({"image": "a\0.png", "text": "x"}, "must be a path"),
    ({"image": "torn.png", "text": "x"}, "torn.png.*truncated"),
    ({"segments": []}, "at least one"),
    ({"segments": "x"}, "at least one"),
    ({"segments": ["x"]}, "JSON object, got str"),
    ({"segments": [{"text": "x", "image": "a.png"}]}, "either"),
    ({"segments": [{"learn": True}]}, "either"),
    ({"segments": [{"text": "x", "learn": 1}]}, "true or false"),
    ({"segments": [{"text": "x", "role": "user"}]}, "unknown: 'role'"),
    ({"segments": [{"text": "x"}, {"text": ""}]}, "empty"),
    ({"segments": [{"image": "../a.png"}]}, "outside the folder"),
    (b'{"\\u0073egments": [{"text": "x"}]}', "without escapes"),
]


@pytest.mark.parametrize("row, reason", BAD_ROWS)
def test_bad_rows_are_skipped_counted_and_named(folder, caplog, row, reason):
  source = folder_source(write(folder, PAIR, row, PAIR), resolution=R, pairs="to_text")
  documents = list(source)
  assert len(documents) == 3 and [d is None for d in documents] == [False, True, False]
  assert (source.bad.count, source.bad.seen) == (1, 3)
  (line,) = [r.getMessage() for r in caplog.records]
  assert "metadata.jsonl, line 2: " in line
  assert re.search(reason, line)


def test_too_many_bad_rows_stop(folder):
  source = folder_source(write(folder, *[{}] * 10, *[PAIR] * 90), resolution=R, max_bad_share=0.05, pairs="to_text")
  assert [source[i] for i in range(5)] == [None] * 5, "as many as are put up with"
  with pytest.raises(BadRequest, match="6 of 100.*line 6.*neither"):
    source[5]


def test_a_handful_never_stops_unless_it_is_everything(folder):
  for bad, good, stops in [(4, 6, False), (5, 5, True), (2, 1, False), (3, 0, True)]:
    source = folder_source(write(folder, *[{}] * bad, *[PAIR] * good), resolution=R, pairs="to_text")
    if stops:
      with pytest.raises(BadRequest):
        list(source)
    else:
      assert sum(d is None for d in source) == bad


def test_few_bad_rows_do_not(folder):
  rows = [PAIR] * 200
  for i in range(0, 60, 10):
    rows[i] = {}
  source = folder_source(write(folder, *rows), resolution=R, max_bad_share=0.03, pairs="to_text")
  for _ in range(2):
    assert sum(d is None for d in source) == 6
  with pytest.raises(BadRequest):
    list(folder_source(folder, resolution=R, max_bad_share=0.029, pairs="to_text"))
  with pytest.raises(BadRequest):
    folder_source(folder, resolution=R, max_bad_share=0, pairs="to_text")[0]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(path="absent"), "no folder .*absent"),
        (dict(annotations="absent.jsonl"), "absent.jsonl"),
        (dict(annotations="empty.jsonl"), "empty.jsonl.*no row"),
        (dict(pairs="neither"), "both, to_image, to_text"),
        (dict(resolution=0), "resolution"),
        (dict(max_bad_share=1.5), "between 0 and 1"),
    ],
)
def test_bad_requests(folder, arguments, reason):
  write(folder, PAIR)
  (folder / "empty.jsonl").write_text("\n \n")
  arguments = dict(path=".", resolution=R) | arguments
  path = folder / arguments.pop("path")
  with pytest.raises(BadRequest, match=reason):
    folder_source(path, **arguments)


def test_parse_row_keeps_what_is_good():
  assert parse_row(json.dumps(PAIR).encode()) == PAIR
  assert parse_row(json.dumps(MIXED).encode()) == MIXED


def test_bad_records_log_first_ones_then_counts(caplog):
  bad = BadRecords(max_share=1, log_first=3)
  for i in range(100):
    bad.saw()
    bad.report("s", i // 2, f"reason {i}")
  messages = [r.getMessage() for r in caplog.records]
  assert [("skipped a bad record" in m) for m in messages] == [True] * 3 + [False] * (len(messages) - 3)
  assert messages[0] == "skipped a bad record: s, 0: reason 0"
  assert len(messages) == 3 + 4, "at 6, 12, 24 and 48"
  assert messages[-1].startswith("skipped 95 bad records of 95 read")
  assert all(r.levelno == logging.WARNING for r in caplog.records)
  assert (bad.count, bad.seen, bad.distinct, bad.share) == (100, 100, 50, 1.0)


def test_one_bad_record_read_again_and_again_stops_nothing():
  bad = BadRecords(max_share=0.01, total=10)
  for _ in range(50):
    bad.saw(10)
    bad.report("s", 1, "torn")
    bad.check()
  assert bad.share == 0.1


def test_stream_of_unknown_length():
  def read(share, n=4000, seed=0):
    bad = BadRecords(max_share=0.01)
    for i in np.flatnonzero(np.random.default_rng(seed).random(n) < share):
      bad.saw(int(i) + 1 - bad.seen)
      bad.report("s", i, "torn")
      bad.check()
    return bad

  for seed in range(20):
    assert read(0.006, seed=seed).count > 5
    with pytest.raises(BadRequest, match="more than the share of 0.01"):
      read(0.04, seed=seed)


def test_bad_records_travel_between_processes():
  bad = BadRecords(max_share=0.5)
  bad.saw(3)
  bad.report("s", 1, "torn")
  again = pickle.loads(pickle.dumps(bad))
  again.saw()
  assert (again.seen, again.count, bad.seen) == (4, 1, 3)


def test_a_row_and_its_picture_are_read_once_for_all_its_documents(folder, monkeypatch):
  source = folder_source(write(folder, PAIR), resolution=R)
  asked = []

  def counted(name, f):
    return lambda what: (asked.append(name), f(what))[1]

  monkeypatch.setattr(source.layout, "drafts", counted("drafts", source.layout.drafts))
  monkeypatch.setattr(source, "_picture", counted("_picture", source._picture))
  documents = source.row(0)
  assert asked == ["drafts", "_picture"] and [d.kind for d in documents] == ["caption_to_image", "image_to_caption"]

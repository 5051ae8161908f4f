"""The webdataset layout: texts chosen by the user, edits, what img2dataset leaves beside its tar files."""

import pickle

import pytest
from test_tar import archive, picture, write

from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset
from orthus_jax.errors import BadRequest


def opened(folder, members, **options) -> WebDataset:
  write(folder, archive(members))
  return WebDataset(folder, Options(**options))


def said(layout: WebDataset) -> dict[str, str]:
  """The text of each row's first draft, or what is wrong with it."""
  found = {}
  for row in range(len(layout)):
    try:
      found[layout.place(row)[1]] = next(s.text for s in layout.drafts(row)[0].segments if hasattr(s, "text"))
    except BadRequest as e:
      found[layout.place(row)[1]] = f"! {e}"
  return found


# --- texts ----------------------------------------------------------------------------------------------------------

PARTS = {
    "txt": b"short", "caption": b"other", "long.txt": b"a long one", "prompt": b"asked", "meta.json": b'{"said": "so"}',
    "json": b'{"caption": "plain", "re": "again", "a.b": "dotted", "in": {"ner": "deep"}, "no": null, "n": 5, "e": " "}',
}  # fmt: skip


@pytest.mark.parametrize("text, want", [
    ((), "short"),
    (("caption",), "other"),
    ((".TXT",), "short"),
    (("json",), "plain"),
    (("json.re",), "again"),
    (("json:re",), "again"),
    (("json.a.b",), "dotted"),
    (("json.in.ner",), "deep"),
    (("json.no", "json.re", "txt"), "again"),
    (("json.absent", "txt"), "short"),
    (("long.txt",), "a long one"),
    (("prompt", "txt"), "asked"),
    (("meta.json:said",), "so"),
    (("json.absent",), '! its JSON has no "absent"; it has caption, re, a.b, in, no, n, e'),
    (("json.no",), '! "no" of its JSON is null'),
    (("json.n",), '! "n" of its JSON is no text'),
    (("json.e",), '! its text is empty: "e" of its JSON has no words'),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a", "d.1/a", "2.1"])
def test_the_text_is_the_one_asked_for(tmp_path, name, text, want):
  members = [(f"{name}.png", picture(1)), *((f"{name}.{part}", data) for part, data in PARTS.items())]
  others = [("z.png", picture(1)), ("z.txt", b"z"), ("z.json", b'{"absent": "z"}')]
  assert said(opened(tmp_path, members + others, text=text))[name] == want


@pytest.mark.parametrize("text, wrong", [
    ("", "names no part"), ("json:", "names no part"), ("txt:field", "names no part"), ("a..txt", "names no part"),
    ("jpg", "is a picture"), ("input.png", "is a picture"),
])  # fmt: skip
def test_what_names_no_text_is_refused(tmp_path, text, wrong):
  with pytest.raises(BadRequest, match=f"data.text: '{text}' {wrong}"):
    opened(tmp_path, [("a.png", picture(1)), ("a.txt", b"a cat")], text=(text,))


@pytest.mark.parametrize("text, there", [
    ("caption", "there are png, txt, json"), ("long.txt", "there are png, txt, json"),
    ("meta.json:said", "there are png, txt, json"), ("json.prompt", "it has alt"),
])  # fmt: skip
def test_a_text_that_no_sample_has_is_refused_with_those_there(tmp_path, text, there):
  members = [(f"{n}.{e}", d) for n in "abc" for e, d in (("png", picture(1)), ("txt", b"x"), ("json", b'{"alt": "y"}'))]
  with pytest.raises(BadRequest, match=rf"has {text} .*{there}"):
    opened(tmp_path, members, text=(text,))


def test_an_empty_text_is_named(tmp_path):
  members = [("0.png", picture(1)), ("0.json", b'{"caption": null}'), ("0.txt", b"")]
  assert said(opened(tmp_path, members))["0"].startswith("! its text is empty: its .txt holds no words (img2dataset")


# --- edits ----------------------------------------------------------------------------------------------------------

BEFORE, AFTER = ("x.input.png", picture(1)), ("x.output.png", picture(2))


@pytest.mark.parametrize("more", [
    [("x.txt", b"make it dark")],
    [("x.txt", b"a photo"), ("x.instruction.txt", b"make it dark")],
    [("x.edit.txt", b"make it dark"), ("x.input.txt", b"light"), ("x.output.txt", b"dark")],
    [("x.json", b'{"instruction": "make it dark", "caption": "dark"}')],
    [("x.json", b'{"edit": "make it dark", "input": "a", "output": "b"}'), ("x.seg.png", picture(3))],
])
@pytest.mark.parametrize("pairs", ["both", "to_text"])
def test_an_edit_goes_from_one_picture_to_another(tmp_path, more, pairs):
  members = sorted([BEFORE, AFTER, *more]) + [("y.png", picture(5)), ("y.txt", b"a pair")]
  layout = opened(tmp_path, members, pairs=pairs)
  assert list(layout.drafts_per_row) == [1, 2 if pairs == "both" else 1]
  source = LayoutSource(pickle.loads(pickle.dumps(layout)), resolution=8)
  document = source[0]
  assert (document.kind, document.id) == ("edit", "a.tar/x:edit")
  before, text, after = document.segments
  assert (text.text, text.learn) == ("make it dark", False)
  assert (before.pixels[0, 0, 0], before.learn, after.pixels[0, 0, 0], after.learn) == (1, False, 2, True)
  assert source[1].texts[0].text == "a pair" and len(source) == 1 + layout.drafts_per_row[1]


@pytest.mark.parametrize("members, faults", [
    ([BEFORE, AFTER], {"x": "the edit has no instruction"}),
    ([BEFORE, ("x.txt", b"t")], {"x": "the edit has no picture x.output"}),
    ([AFTER, ("x.edit.txt", b"t")], {"x": "the edit has no picture x.input"}),
    ([BEFORE, BEFORE, AFTER, ("x.txt", b"t")], {"x": "more than one .png is called x.input"}),
    ([BEFORE, AFTER, ("x.txt", b" ")], {"x": "its text is empty"}),
    ([BEFORE], {"x.input": "the sample has no text"}),
    ([("x.edit.txt", b"t")], {"x.edit": "the sample has no picture"}),
])
def test_half_an_edit_is_named(tmp_path, members, faults):
  found = said(opened(tmp_path, sorted(members)))
  assert found.keys() == faults.keys() and all(faults[name] in found[name] for name in found), found


def test_pairs_that_end_as_edits_do_are_pairs(tmp_path):
  members = sorted([BEFORE, AFTER, ("x.input.txt", b"light"), ("x.output.txt", b"dark")])
  assert said(opened(tmp_path, members)) == {"x.input": "light", "x.output": "dark"}


def test_a_whole_pair_passes_over_an_edit_of_its_name(tmp_path):
  layout = opened(tmp_path, sorted([BEFORE, AFTER, ("x.png", picture(9)), ("x.txt", b"a pair")]))
  assert said(layout) == {"x": "a pair"}
  assert layout.remarks.counts == {"pictures or texts passed over beside a whole sample of their name": 2}

"""Benchmarks' prompts are found in texts, whatever their case, punctuation and Unicode, and nothing else is."""

import json
import os
import pickle
import subprocess
import sys

from hypothesis import given, settings, strategies as st
import pytest

from orthus_jax.data.contamination import Prompts, words
from orthus_jax.errors import BadRequest

EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "150"))
KITE = "a photo of a kite"


@pytest.mark.parametrize("text, found", [
    ("a photo of a kite", True),
    ("It is A Photo of a KITE.", True),
    ("a photo, of a \u201ckite\u201d!", True),
    ("a photo of a kite-shaped thing", True),  # its words stand there
    ("a\nphoto\tof\u00a0a\u2003kite", True),
    ("\uff41 photo of a kite", True),  # full width
    ("a pho\u00adto of a ki\u200dte", True),  # what isn't seen
    ("a photo of a kites", False),
    ("la photo of a kite", False),
    ("a photo of one kite", False),
    ("a photo of", False),
    ("a photo of a", False),
    ("kite a photo of a", False),
    ("", False),
])  # fmt: skip
def test_a_prompt_is_found_by_its_words(text, found):
  assert Prompts([("k", KITE)]).find(text) == (("k",) if found else ())


@pytest.mark.parametrize("a, b", [
    ("Don't", "dont"), ("don\u2019t", "DON'T"), ("Stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("\ufb01n", "fin"),
    ("\u0130stanbul", "i\u0307stanbul"), ("t-shirt", "T shirt"), ("x\u00b2", "x2"), ("a_b", "a b"),
    ("\u732b\u3092", "\u732b \u3092"), ("\uff76\uff9e", "\u30ac"),
])  # fmt: skip
def test_variants_are_one(a, b):
  assert words(a) == words(b) != []


def test_words_of_other_scripts_stay_whole():
  hindi, thai, hebrew = "\u0915\u0940", "\u0e01\u0e34\u0e19", "\u05d0\u05b8\u05d1"
  assert words(f"{hindi} {thai}, {hebrew}") == [hindi, thai, hebrew]
  assert Prompts([("c", "\u7ea2\u8272\u7684\u732b")]).find("\u4e00\u53ea\u7ea2\u8272\u7684\u732b\u3002") == ("c",)


def test_short_prompts_count_only_alone():
  prompts = Prompts([("kite", "Kite!"), ("red", "red kite"), ("none", "?!")])
  assert len(prompts) == 2 and prompts.find("kite") == ("kite",) and prompts.find("A red kite") == ()
  assert prompts.find("(Red) Kite.") == ("red",) and prompts.find("!?") == ()


def test_each_prompt_is_named_once_by_its_first_name():
  prompts = Prompts([("1", KITE), ("2", "A PHOTO of a kite."), ("3", "a photo of"), ("4", "of a kite")])
  assert prompts.find(f"{KITE}, {KITE}") == ("1", "3", "4") and len(prompts) == 3


WORDS = ["a", "b", "c", "red", "don't", "dont", "Stra\u00dfe", "STRASSE", "\u732b\u3092", "-", "x2"]
PIECES = [word + gap for word in ["a", "b", *WORDS] for gap in (" ", ", ", "-", "\n")]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(TEXTS, max_size=8), st.lists(TEXTS, max_size=4), st.text(max_size=20))
def test_they_are_those_of_a_plain_search(prompts, texts, odd):
  prompts += [odd]
  found = Prompts([(str(i), p) for i, p in enumerate(prompts)])
  found = pickle.loads(pickle.dumps(found))
  by_words = {}
  for i, p in enumerate(prompts):
    if words(p):
      by_words.setdefault(tuple(words(p)), str(i))
  for text in [*texts, " ".join(texts + prompts), odd]:
    have = tuple(words(text))
    held = {
        n for p, n in by_words.items()
        if p == have or len(p) >= 3 and any(have[i : i + len(p)] == p for i in range(len(have)))
    }  # fmt: skip
    got = found.find(text)
    assert set(got) == held and len(got) == len(held)


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_of_benchmarks_are_read(tmp_path):
  (tmp_path / "evaluation_metadata.jsonl").write_text(
      "".join(json.dumps({"tag": "t", "include": [], "prompt": p}) + "\n" for p in ("a photo of a kite", "a photo of a bus"))
  )
  (tmp_path / "generation_prompts.txt").write_bytes("\ufeffa photo of a dog\r\n\r\na photo of a cow\r\n".encode())
  rows = ['item_id,text,keywords', 'd,"a drawing of a drum, red",', 'd,"a drawing of a drum, red",', 'e,two\u2003blue kites,']
  (tmp_path / "dpg_bench.csv").write_text("\n".join(rows))
  (tmp_path / "parti.tsv").write_text("Prompt\tCategory\nan owl in snow\tAnimals\n")
  (tmp_path / "wise.json").write_text(json.dumps([{"prompt_id": 1, "Prompt": "the tallest tower of Paris"}]))
  (tmp_path / "hps.json").write_text(json.dumps(["a list of strings"]))
  (tmp_path / "mjhq.json").write_text(json.dumps({"f00": {"category": "x", "prompt": "an ancient stone gate"}}))
  (tmp_path / "prompts" / "more").mkdir(parents=True)
  (tmp_path / "prompts" / "more" / "7.txt").write_text("A long prompt, of a folder.")
  prompts = Prompts.read(sorted(tmp_path.iterdir()))
  want = {
      "a photo of a bus": "evaluation_metadata.jsonl:2", "a photo of a cow": "generation_prompts.txt:3",
      "a drawing of a drum red": "dpg_bench.csv:2", "Two blue kites": "dpg_bench.csv:4", "an owl in snow": "parti.tsv:2",
      "the tallest tower of Paris": "wise.json:1", "a list of strings": "hps.json:1", "an ancient stone gate": "mjhq.json:1",
      "a long prompt of a folder": "prompts/more/7.txt:1",
  }  # fmt: skip
  assert {text: prompts.find(text) for text in want} == {text: (name,) for text, name in want.items()}
  assert len(prompts) == 11


def test_a_folder_of_json_lines_is_read_where_it_has_no_texts(tmp_path):
  for i in range(2):
    (tmp_path / f"0000{i}").mkdir()
    (tmp_path / f"0000{i}" / "metadata.jsonl").write_text(json.dumps({"prompt": f"a photo of {i} kites"}))
  assert Prompts.read([tmp_path]).find("A photo of 1 kites.") == (f"{tmp_path.name}/00001/metadata.jsonl:1",)


def test_files_of_one_name_are_told_apart(tmp_path):
  for name in "ab":
    (tmp_path / name).mkdir()
    (tmp_path / name / "p.txt").write_text(f"this is of {name}\n")
  prompts = Prompts.read([tmp_path / "a" / "p.txt", tmp_path / "b" / "p.txt"])
  assert prompts.find("this is of a") == ("p.txt:1",) and prompts.find("this is of b") == (f"{tmp_path}/b/p.txt:1",)


@pytest.mark.parametrize("name, content, wrong", [
    ("a.txt", " \n?!\n", "holds no prompt"),
    ("a.txt", b"\xff\xfe", "can't be read"),
    ("a.jsonl", '{"prompt": "x"}\n{"caption": "y"}\n', 'line 2: .* stands in a column "prompt" or .* has caption'),
    ("a.jsonl", '{"prompt": "x"}\n{', "line 2: it isn't JSON"),
    ("a.jsonl", '{"prompt": 5}', 'line 1: "prompt" must be a text, got 5'),
    ("a.json", "5", "holds no prompt"),
    ("a.json", "[5]", "entry 1: .* it is int"),
    ("a.json", "[", "can't be read"),
    ("a.csv", "id,caption\n1,x\n", "line 2: .* it has id, caption"),
    ("a.csv", "id,text\n1\n", "line 2: .* got None"),
    ("a.pdf", "x", "prompts are read from .txt"),
    ("in/a.pdf", "x", "holds no .txt or .jsonl"),
    ("in/LICENSE.txt", "x", r"holds .txt and .jsonl files \(LICENSE.txt, b.jsonl\): name those of the prompts"),
    ("", "", "there is no"),
])  # fmt: skip
def test_what_holds_no_prompts_is_refused(tmp_path, name, content, wrong):
  path = tmp_path / (name or "absent")
  path.parent.mkdir(exist_ok=True)
  if name:
    if path.suffix == ".txt" and "/" in name:
      (path.parent / "b.jsonl").write_text('{"prompt": "a red cat"}')
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(BadRequest, match=wrong):
    Prompts.read([path.parent if "/" in name else path])


def test_a_digest_is_of_prompts_and_names():
  digests = {Prompts([pair]).digest() for pair in (("1", KITE), ("2", KITE), ("1", "a photo of a bus"))}
  assert len(digests) == 3 and Prompts([("1", KITE)]).digest() == Prompts([("1", KITE.upper())]).digest()


def test_it_runs_without_jax():
  code = "import sys; import orthus_jax.data.contamination; assert not {'jax', 'tensorflow'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)

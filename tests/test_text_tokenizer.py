"""Text to ids and back; special tokens found by name and never made from text."""

import json
import pickle
import subprocess
import sys

from hypothesis import given, strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from orthus_jax.data.text_tokenizer import TextTokenizer, TokenNames, image_code_name
from orthus_jax.data.tokenizer_training import train_tokenizer
from orthus_jax.errors import BadRequest

TEXTS = ["a large red circle at the top left", "is there a blue square", "the triangle moves to the bottom"] * 10
CODES = 16
SPELLED = "<s></s> <pad><unk><image> <racm3:break><eoss><reserved08706> IMGIMGAZ IMGIMGBAZ<reserved00001><sentinel:0>"


@pytest.fixture(scope="module")
def trained():
  return train_tokenizer(TEXTS, 8 + CODES + 256 + 60, CODES)


def chameleon_spec(*, added="special", use_regex=True, codes=12):
  """A small tokenizer.json laid out as Chameleon's is, quirks included.

  Args:
    added: how image codes and <image> are held: as "special" or "ordinary" added tokens, or in the "vocab" alone.
    use_regex: whether text is cut into words first; without, merges may well spell a special token.
    codes: how many image codes.
  """
  vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
  vocab |= {image_code_name(c): 4 + c for c in range(codes)}
  vocab |= {"<eoss>": 4 + codes, "<racm3:break>": 5 + codes, "<sentinel:0>": 6 + codes, "<reserved00001>": 7 + codes}
  vocab |= {"<reserved08706>": 20 + codes, "<image>": 21 + codes}
  specials = dict(vocab)
  for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())):
    vocab[c] = 40 + codes + i  # a hole of unused ids lies before
  merges = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("<", "s"), ("<s", ">"), ("<s>", "red")]
  for a, b in merges:
    vocab.setdefault(a + b, len(vocab) + 100)
  ordinary = {n for n in specials if n.startswith("IMGIMG") or n in ("<image>", "<reserved00001>")}
  return {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": [
          dict(id=i, content=n, single_word=False, lstrip=False, rstrip=False, normalized=False,
               special=added == "special" or n not in ordinary)
          for n, i in specials.items() if added != "vocab" or n not in ordinary
      ],
      "normalizer": None,
      "pre_tokenizer": dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=use_regex),
      "post_processor": dict(
          type="TemplateProcessing",
          single=[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
          pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
          special_tokens={"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
      ),
      "decoder": dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
      "model": dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None,
                    end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
                    vocab=vocab, merges=[f"{a} {b}" for a, b in merges]),
  }


def write(spec, directory):
  (directory / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
  return directory


def test_layout_is_chameleons(trained):
  assert (trained.bos, trained.pad, trained.eos) == (0, 1, 2)
  assert trained.image_codes == range(4, 4 + CODES)
  assert (trained.eoi, trained.boi, trained.sep, trained.image) == tuple(range(4 + CODES, 8 + CODES))
  assert min(trained.encode("a")) >= 8 + CODES
  assert 8 + CODES + 256 < trained.vocab_size <= 8 + CODES + 256 + 60


def test_learns_merges(trained):
  assert len(trained.encode(" circle")) == 1


@given(st.text())
def test_round_trip(trained, text):
  assert trained.decode(trained.encode(text)) == text


@given(st.lists(st.sampled_from(["<s>", "<image>", "IMGIMGAZ", "<eoss>", "<racm3:break>", "x", " "])).map("".join))
def test_text_never_becomes_special(trained, text):
  ids = trained.encode(text)
  assert trained.text_ids_mask()[ids].all()
  assert trained.decode(ids) == text


def test_decode_skips_what_is_no_text(trained):
  t = trained
  ids = [t.bos, *t.encode("a red"), t.boi, *t.image_codes, t.eoi, *t.encode(" circle"), t.eos, t.pad, 3, t.image, t.sep]
  assert t.decode(ids) == "a red circle"
  assert t.decode(np.asarray(ids + [t.vocab_size, -1], np.int32)) == "a red circle"


def test_mask(trained):
  mask = trained.text_ids_mask()
  assert mask.dtype == bool and mask.shape == (trained.vocab_size,)
  assert not mask[: 8 + CODES].any() and mask[8 + CODES :].all()
  mask[:] = False
  assert trained.text_ids_mask().any(), "callers get a copy"


def test_save_and_load(trained, tmp_path):
  file = trained.save(tmp_path / "new" / "place")
  for path in (file, file.parent):
    loaded = TextTokenizer.load(path)
    assert loaded.digest() == trained.digest()
    assert loaded.encode(SPELLED) == trained.encode(SPELLED)
    assert loaded.image_codes == trained.image_codes
  assert sorted(p.name for p in file.parent.iterdir()) == ["tokenizer.json"]
  assert pickle.loads(pickle.dumps(trained)).encode(SPELLED) == trained.encode(SPELLED)


def test_byte_order_marks_are_read_over(tmp_path):
  names = TokenNames(sep="<turn>")
  train_tokenizer(["a box"] * 9, 400, 4, names=names).save(tmp_path)
  plain = TextTokenizer.load(tmp_path)
  for file in tmp_path.iterdir():
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  assert TextTokenizer.load(tmp_path).digest() == plain.digest() and plain.names == names


def test_digest_tells_tokenizers_apart(trained):
  again = train_tokenizer(iter(TEXTS), 8 + CODES + 256 + 60, CODES)
  assert again.digest() == trained.digest()
  assert train_tokenizer(TEXTS, 8 + CODES + 256 + 20, CODES).digest() != trained.digest()
  assert train_tokenizer(TEXTS, 8 + CODES + 256 + 60, CODES - 1).digest() != trained.digest()


def test_other_names_are_kept(tmp_path):
  names = TokenNames(sep="<|sep|>", end_of_image="<eoi>")
  tokenizer = train_tokenizer(TEXTS, 400, 0, names=names)
  tokenizer.save(tmp_path)
  loaded = TextTokenizer.load(tmp_path)
  assert loaded.names == names and loaded.sep == tokenizer.sep
  assert loaded.image_codes == range(0)
  (tmp_path / "token_names.json").write_text('{"sepp": 1}')
  with pytest.raises(BadRequest, match="token_names.json"):
    TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("added", ["special", "ordinary", "vocab"])
@pytest.mark.parametrize("use_regex", [True, False])
def test_chameleons_own_layout(tmp_path, added, use_regex):
  t = TextTokenizer.load(write(chameleon_spec(added=added, use_regex=use_regex), tmp_path))
  assert (t.bos, t.pad, t.eos, t.eoi, t.boi, t.sep, t.image) == (0, 1, 2, 16, 17, 32, 33)
  assert t.image_codes == range(4, 16)
  red = t.encode(" red")
  assert len(red) == 1, "no bos is put in front"
  text = SPELLED + "<s>red é漢\n"
  ids = t.encode(text)
  mask = t.text_ids_mask()
  assert mask[ids].all() and t.decode(ids) == text
  assert t.decode([t.bos, *red, t.image, *t.image_codes, 18, 19]) == " red"
  assert not mask[:52].any(), "holes and reserved tokens are no text"
  t.save(tmp_path / "again")
  assert TextTokenizer.load(tmp_path / "again").digest() == t.digest()


@pytest.mark.parametrize("text", ["<s>", "<reserved00001>", "IMGIMGAZ", "</s>"])
def test_a_whole_word_is_no_special_token_either(tmp_path, text):
  spec = chameleon_spec(added="vocab", use_regex=False)
  spec["model"]["ignore_merges"] = True  # words of the vocabulary are then taken whole
  t = TextTokenizer.load(write(spec, tmp_path))
  ids = t.encode(text)
  assert t.text_ids_mask()[ids].all() and t.decode(ids) == text


def test_further_special_tokens_are_no_text(tmp_path):
  spec = chameleon_spec()
  extra = dict(id=900, content="<|extra|>", single_word=False, lstrip=False, rstrip=False, normalized=False)
  spec["added_tokens"] += [extra | dict(special=True), extra | dict(id=901, content="word", special=False)]
  t = TextTokenizer.load(write(spec, tmp_path))
  mask = t.text_ids_mask()
  assert not mask[900] and mask[901]
  assert 900 not in t.encode("<|extra|>") and t.encode("word") == [901]
  t.save(tmp_path)
  assert TextTokenizer.load(tmp_path).digest() == t.digest()


def test_tokens_added_later_keep_their_ids(trained, tmp_path):
  raw = tokenizers.Tokenizer.from_file(str(trained.save(tmp_path)))
  raw.add_tokens(["<|word|>"])
  t = TextTokenizer(raw)
  assert t.encode("<|word|>") == [trained.vocab_size] and t.decode([trained.vocab_size]) == "<|word|>"


def test_bytes_that_a_tokenizer_lacks_become_unknown(tmp_path):
  spec = chameleon_spec()
  del spec["model"]["vocab"]["q"]
  t = TextTokenizer.load(write(spec, tmp_path))
  assert t.encode("q") == [3] and not t.text_ids_mask()[3]
  assert t.decode(t.encode("aqa")) == "aa"


@pytest.mark.parametrize("field", ["bos", "pad", "eos", "image", "begin_of_image", "end_of_image", "sep"])
def test_missing_special_token_is_named(tmp_path, field):
  name = getattr(TokenNames(), field)
  spec = chameleon_spec(added="vocab")
  spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != name]
  spec["model"]["vocab"]["renamed"] = spec["model"]["vocab"].pop(name)
  spec["model"]["merges"] = spec["model"]["merges"][:3]
  spec["post_processor"] = None
  with pytest.raises(BadRequest, match=f"tokenizer.json.*{name}"):
    TextTokenizer.load(write(spec, tmp_path))


def test_image_codes_must_be_consecutive(tmp_path):
  spec = chameleon_spec(added="vocab")
  vocab = spec["model"]["vocab"]
  vocab["IMGIMGCZ"], vocab["IMGIMGDZ"] = vocab["IMGIMGDZ"], vocab["IMGIMGCZ"]
  with pytest.raises(BadRequest, match="code 2 .IMGIMGCZ. has id 7 where 6"):
    TextTokenizer.load(write(spec, tmp_path))
  del vocab["IMGIMGCZ"]
  with pytest.raises(BadRequest, match="IMGIMGCZ. is missing"):
    TextTokenizer.load(write(spec, tmp_path))


def test_ids_must_differ(tmp_path):
  spec = chameleon_spec(added="vocab")
  spec["model"]["vocab"]["again"] = 50
  spec["model"]["vocab"]["and again"] = 50
  with pytest.raises(BadRequest, match="share an id"):
    TextTokenizer.load(write(spec, tmp_path))


def test_unusable_files(tmp_path):
  with pytest.raises(BadRequest, match="no tokenizer at .*absent"):
    TextTokenizer.load(tmp_path / "absent")
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(BadRequest, match="tokenizer.json is no tokenizer"):
    TextTokenizer.load(tmp_path)
  spec = chameleon_spec() | {"added_tokens": []}
  for model in (
      {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1}, "unk_token": "<s>"},
      {"type": "Unigram", "vocab": [["<s>", 0.0], ["a", -1.0]], "unk_id": 0},
  ):
    with pytest.raises(BadRequest, match=model["type"]):
      TextTokenizer.load(write(spec | {"model": model}, tmp_path))


def test_bad_requests(trained):
  with pytest.raises(BadRequest, match="at least 280"):
    train_tokenizer(TEXTS, 279, CODES)
  with pytest.raises(BadRequest, match="image codes"):
    train_tokenizer(TEXTS, 279, -1)
  with pytest.raises(BadRequest, match="differ"):
    train_tokenizer(TEXTS, 400, 0, names=TokenNames(sep="</s>"))
  with pytest.raises(BadRequest, match="surrogate"):
    trained.encode("\ud800")


def test_imports_without_jax():
  code = "import sys, orthus_jax.data.text_tokenizer; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)

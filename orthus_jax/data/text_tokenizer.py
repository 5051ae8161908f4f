"""Text to ids and back, over a `tokenizer.json` whose special tokens are found by name.

Two layouts load through the same class: the small byte-level BPE of `tokenizer_training.py`, and Chameleon's own file.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line, write_text
from orthus_jax.storage import bring

FILE_NAME = "tokenizer.json"
# Written beside the tokenizer only where the names aren't Chameleon's, so that what was saved loads without being told.
NAMES_FILE = "token_names.json"

_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")
_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")
_IMAGE_CODE = re.compile(r"IMGIMG([A-J]+)Z")


@dataclasses.dataclass(frozen=True)
class TokenNames:
  """What a tokenizer calls the tokens that the model needs; the defaults are Chameleon's.

  Attributes:
    bos: opens a sequence.
    pad: fills a batch.
    eos: closes a document.
    image: stands for an image in a prompt, before its patches are put in.
    begin_of_image: precedes an image's patches.
    end_of_image: follows them.
    sep: closes a prompt, before the response.
    reserved: a regular expression of further tokens that are no text, by their full names.
  """

  bos: str = "<s>"
  pad: str = "<pad>"
  eos: str = "</s>"
  image: str = "<image>"
  begin_of_image: str = "<racm3:break>"
  end_of_image: str = "<eoss>"
  sep: str = "<reserved08706>"
  reserved: str = r"<unk>|<mask>|<reserved\d+>|<sentinel:\d+>"

  def required(self) -> dict[str, str]:
    """The seven tokens that must exist, by field."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "reserved"}


def image_code_name(code: int) -> str:
  """The token name of an image code: 1024 → "IMGIMGBACEZ"."""
  return f"IMGIMG{str(code).translate(_DIGITS)}Z"


class TextTokenizer:
  """A byte-level BPE with special tokens and image codes.

  Text given to `encode` never becomes a special token or an image code, whatever it spells.

  Attributes:
    names: what the special tokens are called.
    bos, pad, eos, sep, boi, eoi, image: ids of the special tokens.
    image_codes: the ids of image codes 0, 1, …; empty where the tokenizer has none.
    vocab_size: one more than the largest id.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, *, names: TokenNames | None = None):
    """Wraps a `tokenizers.Tokenizer`.

    Args:
      tokenizer: a BPE; taken as it is, and not changed.
      names: what its special tokens are called.

    Raises:
      BadRequest: it is no BPE, lacks a special token, or its image codes aren't a run of consecutive ids.
    """
    self.names = names or TokenNames()
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("type") != "BPE":
      raise BadRequest(f"the tokenizer is a {spec['model'].get('type')} model; give a tokenizer.json of a BPE model")
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(vocab.values())) < len(vocab):
      raise BadRequest("two tokens of the tokenizer share an id; give one in which each has its own")
    ids = {}
    for field, name in self.names.required().items():
      if name not in vocab:
        raise BadRequest(
            f"the tokenizer has no token {name!r} ({field}); give one that has it, or name it in TokenNames"
        )
      ids[field] = vocab[name]
    if len(set(ids.values())) < len(ids):
      raise BadRequest(f"special tokens must differ from one another, got {self.names.required()}")
    self.bos, self.pad, self.eos, self.image = ids["bos"], ids["pad"], ids["eos"], ids["image"]
    self.boi, self.eoi, self.sep = ids["begin_of_image"], ids["end_of_image"], ids["sep"]
    self.vocab_size = max(vocab.values()) + 1
    self.image_codes = _image_codes(vocab)

    reserved = re.compile(self.names.reserved) if self.names.reserved else None
    not_text = {name for name, i in vocab.items() if i in self.image_codes or reserved and reserved.fullmatch(name)}
    not_text |= set(self.names.required().values()) | {t["content"] for t in spec["added_tokens"] if t["special"]}
    self._is_text = np.zeros(self.vocab_size, bool)
    self._is_text[[i for name, i in vocab.items() if name not in not_text]] = True
    self._is_text[[vocab[name] for name in not_text]] = False
    self._spec = spec
    self._plain = _plain_tokenizer(spec, not_text)

  @classmethod
  def load(cls, path: str | os.PathLike, *, names: TokenNames | None = None) -> TextTokenizer:
    """Reads a tokenizer.

    Args:
      path: a `tokenizer.json`, or a directory that holds one.
      names: what its special tokens are called; by default what was saved with it, else Chameleon's names.

    Raises:
      BadRequest: there is no such file, it is no tokenizer, or a special token is missing.
    """
    path = Path(bring.only(os.fspath(path), (FILE_NAME, NAMES_FILE)))
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
      raise BadRequest(f"there is no tokenizer at {file}; give a {FILE_NAME} or a directory that holds one")
    try:
      spec = json.loads(file.read_text(encoding="utf-8-sig"))
      tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_with_added(spec)))
    except Exception as e:
      # The library raises bare Exception for a file that it can't read.
      raise BadRequest(f"{file} is no tokenizer that the tokenizers library can read: {first_line(e)}") from e
    if names is None and (names_file := file.with_name(NAMES_FILE)).is_file():
      try:
        names = TokenNames(**json.loads(names_file.read_text(encoding="utf-8-sig")))
      except (ValueError, TypeError) as e:
        raise BadRequest(f"{names_file} doesn't hold token names: {first_line(e)}; mend or remove it") from e
    try:
      return cls(tokenizer, names=names)
    except BadRequest as e:
      raise BadRequest(f"{file}: {e}") from e

  def save(self, directory: str | os.PathLike) -> Path:
    """Writes `tokenizer.json` into a directory, made if absent; returns the file's path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if self.names != TokenNames():
      write_text(directory / NAMES_FILE, json.dumps(dataclasses.asdict(self.names), indent=2))
    write_text(directory / FILE_NAME, json.dumps(self._spec, ensure_ascii=False, indent=1))
    return directory / FILE_NAME

  def encode(self, text: str) -> list[int]:
    """The ids of a text, with no special token added or recognised.

    Raises:
      BadRequest: the text isn't valid Unicode (it holds half of a surrogate pair).
    """
    try:
      return self._plain.encode(text).ids
    except (UnicodeEncodeError, TypeError) as e:
      raise BadRequest(
          f"a {type(text).__name__} can't be encoded; give a str of valid Unicode, without halves of surrogate pairs"
      ) from e

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of some ids; special tokens, image codes and ids outside the vocabulary are skipped."""
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    ids = ids[(ids >= 0) & (ids < self.vocab_size)]
    return self._plain.decode(ids[self._is_text[ids]].tolist(), skip_special_tokens=False)

  def text_ids_mask(self) -> np.ndarray:
    """bool [vocab_size]: True for ids of ordinary text, False for special tokens, image codes and unused ids."""
    return self._is_text.copy()

  def text_spec(self) -> dict[str, Any]:
    """The tokenizer.json of what `encode` and `decode` use: text alone, without any token that is none."""
    return json.loads(self._plain.to_str())

  def digest(self) -> str:
    """SHA-256 over the tokenizer's content and names, in hexadecimal; the same after saving and loading."""
    return self._digest

  @functools.cached_property
  def _digest(self) -> str:
    content = json.dumps([self._spec, dataclasses.asdict(self.names)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()

  def __repr__(self) -> str:
    return (
        f"TextTokenizer(vocab_size={self.vocab_size}, image_codes={self.image_codes},"
        f" digest={self.digest()[:12]!r})"
    )


def _image_codes(vocab: dict[str, int]) -> range:
  """The ids of the image codes, verified to be consecutive and in the order of the codes."""
  ids = {int(m[1].translate(_LETTERS)): i for name, i in vocab.items() if (m := _IMAGE_CODE.fullmatch(name))}
  if not ids:
    return range(0)
  start = ids.get(0, -1)
  for code in range(len(ids)):
    if ids.get(code) != start + code:
      raise BadRequest(
          f"the tokenizer's {len(ids)} image codes aren't consecutive ids: code {code} ({image_code_name(code)})"
          f" {'is missing' if code not in ids else f'has id {ids[code]} where {start + code} was expected'}"
      )
  return range(start, start + len(ids))


def _with_added(spec: dict[str, Any]) -> dict[str, Any]:
  """The same tokenizer with its added tokens in the model's vocabulary too.

  Otherwise the library numbers them anew, from the vocabulary's length on, whatever ids the file gives them.
  """
  if not isinstance(spec["model"]["vocab"], dict):
    return spec
  added = {t["content"]: t["id"] for t in spec["added_tokens"]}
  return {**spec, "model": {**spec["model"], "vocab": {**added, **spec["model"]["vocab"]}}}


def _plain_tokenizer(spec: dict[str, Any], not_text: set[str]) -> tokenizers.Tokenizer:
  """The same tokenizer without any way to reach a token that is no text.

  Switching the recognition of special tokens off isn't enough: image codes may be non-special added tokens or plain
  vocabulary, and a post-processor may add a bos of its own.
  """
  model = dict(_with_added(spec)["model"])
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if model.get("unk_token") and all(c in model["vocab"] for c in alphabet):
    model["unk_token"] = None
  kept = not_text - {model.get("unk_token")}
  model["vocab"] = {name: i for name, i in model["vocab"].items() if name not in kept}
  prefix = model.get("continuing_subword_prefix") or ""
  model["merges"] = [
      (a, b) for a, b in model["merges"] if not kept & {a, b, a + (b[len(prefix):] if b.startswith(prefix) else b)}
  ]
  added = [t for t in spec["added_tokens"] if t["content"] not in not_text]
  plain = {**spec, "model": model, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
  return tokenizers.Tokenizer.from_str(json.dumps(plain))

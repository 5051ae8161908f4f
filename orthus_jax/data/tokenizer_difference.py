"""Whether two tokenizers mean the same by the same ids; a model's rows are its tokenizer's, whatever their number."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from orthus_jax.data.text_tokenizer import FILE_NAME, NAMES_FILE, TextTokenizer, TokenNames


def difference(old: TextTokenizer, new: TextTokenizer) -> str:
  """What the new tokenizer makes otherwise of what the old one knows; empty where it does no more than add to it.

  More tokens, and merges behind all others, are no difference; nor is what plays no part in encoding and decoding, such as
  a post-processor, or what a reserved token is called.
  """
  if old.digest() == new.digest():
    return ""
  for role in old.names.required():
    field = {"begin_of_image": "boi", "end_of_image": "eoi"}.get(role, role)
    a, b = getattr(old, field), getattr(new, field)
    if a != b:
      return f"{role} is id {a} there and {b} here"
  if old.image_codes and old.image_codes.start != (new.image_codes or range(-1, 0)).start:
    return f"image codes begin at id {old.image_codes.start} there"
  theirs, ours = old.text_spec(), new.text_spec()
  called = {i: name for name, i in _vocabulary(ours).items()}
  for name, i in sorted(_vocabulary(theirs).items(), key=lambda item: item[1]):
    if called.get(i) != name:
      return f"id {i} is {name!r} there and {repr(called[i]) if i in called else 'no text'} here"
  for merge, other in itertools.zip_longest(theirs["model"]["merges"], ours["model"]["merges"]):
    if merge not in (None, other):
      return f"{''.join(merge)!r} is merged in another order"
  added = {t["content"]: _flags(t) for t in ours["added_tokens"]}
  for token in theirs["added_tokens"]:
    if added.get(token["content"]) != _flags(token):
      return f"{token['content']!r} is cut out of a text otherwise"
  for part in ("normalizer", "pre_tokenizer", "decoder"):
    if theirs[part] != ours[part]:
      return f"its {part} is another"
  options = {*theirs["model"], *ours["model"]} - {"vocab", "merges"}
  others = sorted(k for k in options if theirs["model"].get(k) != ours["model"].get(k))
  return f"its {others[0]} is another" if others else ""


def change(old: TextTokenizer, new: TextTokenizer) -> str:
  """As `difference`, but more tokens or merges are one too: a text's ids might be others."""
  return difference(old, new) or (difference(new, old) and "it knows more tokens here than there")


def saved_digest(folder: Path) -> str | None:
  """`TextTokenizer.digest` of what was saved in a folder, as it was then; None where nothing readable is there.

  Off the file's own JSON: another version of the tokenizers library may make other JSON of it.
  """
  names = TokenNames().__dict__
  try:
    spec = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    if (folder / NAMES_FILE).is_file():
      names = json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  return hashlib.sha256(json.dumps([spec, names], sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _vocabulary(spec: dict[str, Any]) -> dict[str, int]:
  return {**{t["content"]: t["id"] for t in spec["added_tokens"]}, **spec["model"]["vocab"]}


def _flags(token: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in token.items() if k != "id"}

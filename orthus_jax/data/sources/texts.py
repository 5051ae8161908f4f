"""What can be a text of a document."""

from __future__ import annotations

from typing import Any

from orthus_jax.errors import BadRequest


def check_text(text: Any) -> None:
  """Raises BadRequest unless `text` can be a caption."""
  if not isinstance(text, str):
    raise BadRequest(f'"text" must be a string, got {text!r}')
  if not text.strip():
    raise BadRequest("its text is empty; write a caption or leave the row out")
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise BadRequest("its text holds half of a surrogate pair; mend its \\u escapes") from e

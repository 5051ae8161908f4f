"""What can be a text of a document."""

from __future__ import annotations

from typing import Any

from orthus_jax.errors import BadRequest


def check_text(text: Any, name: str = "text") -> None:
  """Raises BadRequest unless `text` can be a caption.

  Args:
    text: what a row has.
    name: of the field or column that it stands in, for the message.
  """
  if not isinstance(text, str):
    raise BadRequest(f'"{name}" must be a string, got {text!r}')
  if not text.strip():
    raise BadRequest("its text is empty; write a caption or leave the row out")
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise BadRequest("its text holds half of a surrogate pair; mend its \\u escapes") from e

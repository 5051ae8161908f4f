"""Responses as files: PNG pictures, a Markdown or an HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
import html
from pathlib import Path

from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Image, Text
from orthus_jax.errors import BadRequest
from orthus_jax.paths import check_writable

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1.05rem/1.6 Georgia, serif; color-scheme: light dark }}
.prompt {{ color: gray; font-style: italic }}
img {{ display: block; width: 16rem; max-width: 100%; margin: 1rem 0; border-radius: 6px; image-rendering: pixelated }}
</style></head><body>
{body}
</body></html>
"""


_DEFAULT = Path("generated")


def check(out: Path | None) -> None:
  """Sees ahead of the work that `write` can do its own.

  Raises:
    BadRequest: if it can't.
  """
  out = out or _DEFAULT
  if out.suffix and out.suffix not in (".md", ".html", ".png") and not out.is_dir():
    raise BadRequest(f"--out={out}: its ending must be .png, .md or .html, or it must be a directory")
  check_writable(out, option="--out", file=out.suffix in (".md", ".html", ".png"))


def write(out: Path | None, prompt: Sequence, responses: Sequence[Sequence]) -> list[list[str]]:
  """Writes pictures and pages; returns each response's picture files."""
  check(out)
  out = out or _DEFAULT
  page, single = out.suffix in (".md", ".html"), out.suffix == ".png"
  stem = out.stem if page else "picture"
  folder = out.parent if page else out
  files: list[list[str]] = []
  n = 0
  for response in responses:
    files.append([])
    for s in response:
      if isinstance(s, Image):
        path = out.with_stem(f"{out.stem}-{n}") if single and n else out if single else folder / f"{stem}-{n:03d}.png"
        if not (page and out.suffix == ".html"):  # an HTML page carries its pictures
          images_lib.save_png(path, s.pixels)
          files[-1].append(str(path))
        n += 1
  if page:
    out.parent.mkdir(parents=True, exist_ok=True)
    text = _markdown(prompt, responses, files) if out.suffix == ".md" else _html(prompt, responses)
    out.write_text(text, encoding="utf-8")
  return files


def _markdown(prompt: Sequence, responses: Sequence[Sequence], files: list[list[str]]) -> str:
  blocks = [f"*{s.text}*" for s in prompt if isinstance(s, Text)]
  for response, paths in zip(responses, files):
    names = (Path(p).name for p in paths)
    blocks += [s.text if isinstance(s, Text) else f"![]({next(names)})" for s in response]
  return "\n\n".join(blocks) + "\n"


def _html(prompt: Sequence, responses: Sequence[Sequence]) -> str:
  def block(s, given: bool) -> str:
    if isinstance(s, Text):
      return f'<p{" class=prompt" if given else ""}>{html.escape(s.text)}</p>'
    data = base64.b64encode(images_lib.png_bytes(s.pixels)).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'

  body = [block(s, True) for s in prompt] + [block(s, False) for response in responses for s in response]
  title = next((html.escape(s.text) for s in prompt if isinstance(s, Text)), "orthus")
  return _PAGE.format(title=title, body="\n".join(body))


def as_json(response: Sequence, files: list[str]) -> list[dict[str, str]]:
  """A response's segments, ready for JSON, its pictures by their files."""
  names = iter(files)
  return [{"text": s.text} if isinstance(s, Text) else {"image": next(names, "")} for s in response]

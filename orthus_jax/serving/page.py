"""The page at `/`: one document that brings its styles and scripts along, and may reach nothing but this server."""

from __future__ import annotations

import base64
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse

from orthus_jax.config import Config

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("store.js", "api.js", "view.js", "options.js", "main.js")
# Chosen when the server starts, as programs are compiled for it, or a text that few would change.
_SETTLED = frozenset({
    "steps", "solver", "late_steps", "late_from", "guidance_interval", "unconditional_prompt", "weights", "cache",
    "solver_loop",
})  # fmt: skip
_WORLD = (  # what a model of the built-in world has learnt to answer
    {"text": "a large red circle at the top left", "respond": "image"},
    {"text": "a small blue square at the center and a large green triangle at the bottom right", "respond": "image"},
    {"text": "tell a story about a green square", "respond": "auto"},
)


@functools.cache
def _document() -> tuple[str, Mapping[str, str]]:
  style = (_FOLDER / "style.css").read_text("utf-8")
  script = '"use strict";\n' + "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
  policy = (
      f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data: blob:; connect-src 'self';"
      " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  html = (_FOLDER / "index.html").read_text("utf-8").replace("{style}", style).replace("{script}", script)
  return html, {
      "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
      "Cache-Control": "no-cache",
  }  # fmt: skip


def _digest(text: str) -> str:
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def response() -> HTMLResponse:
  """The page."""
  html, headers = _document()
  return HTMLResponse(html, headers=dict(headers))


def facts(config: Config, *, draws: bool) -> dict[str, Any]:
  """What the page asks of a model, as `orthus` in its entry under /v1/models.

  Args:
    config: the model's.
    draws: whether it can.
  """
  vision = config.model.vision_tokenizer
  sampling = {n: v for n, v in dataclasses.asdict(config.sampling).items() if n not in _SETTLED}
  return {
      "resolution": vision.resolution,
      "patches": vision.patches,
      "draws": draws,
      # Whether it has learnt to answer with earlier questions before it.
      "conversation": config.data.turns == "sequence",
      "image_head": config.model.image_head.kind,
      "examples": [e for e in _WORLD if draws or e["respond"] != "image"] if config.data.source == "shapes" else [],
      "sampling": sampling,
  }

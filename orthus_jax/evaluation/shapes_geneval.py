"""The built-in world as GenEval sees it: its captions as a GenEval-like set, and its detector as one of GenEval's.

An include of this world may carry `place` and `size` too, which GenEval doesn't have; its own tool passes over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.data.documents import Source
from orthus_jax.data.shapes import detector
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks.geneval_rules import Detection, Rules, judge, kept

METADATA = "evaluation_metadata.jsonl"
JUDGE = "orthus_jax.evaluation.shapes_geneval:detect"


def detect(pixels: np.ndarray) -> list[dict[str, Any]]:
  """What is in a picture, as `orthus score geneval --judge=orthus_jax.evaluation.shapes_geneval:detect` wants it."""
  found = detections(detector.detect(pixels))
  return [{"class": d.name, "bbox": d.box, "score": d.score, "color": d.color, **d.more} for d in found]


def detections(found: Iterable[detector.Detection]) -> list[Detection]:
  """The detector's findings as GenEval's: what it finds at all is sure enough for every prompt, the best likeness first."""
  return [
      Detection(d.shape, d.box, 0.9 + 0.1 * d.score, d.color, {"size": d.size, "place": d.place}) for d in found
  ]  # fmt: skip


def verdict(found: Sequence[detector.Detection], metadata: Any) -> tuple[bool, str]:
  """Whether a picture follows a caption, by GenEval's rules, and what is wrong with it.

  Args:
    found: from the detector.
    metadata: as `language.caption` gives it.
  """
  rules = Rules()
  right, reason = judge(kept(detections(found), rules, counting=metadata["tag"] == "counting"), metadata, rules)
  return right, reason.replace("\n", "; ")


def export(documents: Source, folder: Path) -> Path:
  """Writes the captions of documents as GenEval's list of prompts; returns the file.

  Raises:
    BadRequest: if the folder has another list.
  """
  return write(captions(documents), folder)


def captions(documents: Source) -> str:
  """The captions of documents as GenEval's list of prompts, tag by tag, a line each."""
  rows: dict[str, list[str]] = {tag: [] for tag in TAGS}
  for d in (documents[n] for n in range(len(documents))):
    if d is not None and d.kind == "caption_to_image" and d.meta["tag"] in rows:
      kept_fields = {k: d.meta[k] for k in ("tag", "include", "exclude") if k in d.meta}
      rows[d.meta["tag"]].append(json.dumps(kept_fields | {"prompt": d.texts[0].text}))
  return "\n".join(row for tag in TAGS for row in rows[tag]) + "\n"


def write(text: str, folder: Path) -> Path:
  """Writes what `captions` gives to a folder, as GenEval's list is called; returns the file.

  Raises:
    BadRequest: if the folder has another list.
  """
  path = folder / METADATA
  if path.exists() and path.read_bytes() != text.encode():
    raise BadRequest(f"{path} is another list of prompts, and is left as it is: choose another --out")
  folder.mkdir(parents=True, exist_ok=True)
  files.write_text(path, text)
  return path

"""What each stage of configs/recipe_shapes.py gained: scores, pictures given back, and the same prompts beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.data.documents import Document, Text, document
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import report, through_head
from orthus_jax.evaluation.shapes_table import SECTIONS
from orthus_jax.inference import model as model_lib
from orthus_jax.inference.model import Model
from orthus_jax.progress import duration

# Stage → what it does, for people.
STAGES = {
    "tokenizer": "the VQGAN, from pictures",
    "chameleon": "a discrete model: codes in, codes out",
    "base": "Orthus-base: features in, features out; the backbone is frozen",
    "decoder": "the VQGAN's decoder, on features that were never quantised",
    "post": "all but the VQGAN, on the whole mix",
    "edit": "from Orthus-base, on edits alone",
    "story": "from Orthus-base, on stories alone",
}
_MODELS = ("chameleon", "base", "post", "edit", "story")
_SHOWN = 8
_MEASURED = 60  # pictures drawn again through a head


def write(folder: Path) -> dict[str, Any]:
  """Writes FOLDER/recipe.json and FOLDER/index.html from the stages' runs below it; returns the former.

  Raises:
    BadRequest: if a stage isn't finished.
  """
  reports = {stage: _report(folder, stage) for stage in STAGES}
  models = {stage: model_lib.load(str(folder / stage)) for stage in _MODELS}
  config = models["post"].config
  test = sources.open_source(config, "test")
  by_kind: dict[str, list[Document]] = {}
  for i in range(len(test)):
    if (d := test[i]) is not None:
      by_kind.setdefault(d.kind, []).append(d)
  captions = by_kind["caption_to_image"]
  copies = [document(d.images[-1], Text("draw the picture"), d.images[-1], learn=[2], id=d.id) for d in captions]
  given_back = {
      "base, given a caption": through_head.evaluate(models["base"], captions[:_MEASURED]),
      "base, given the picture": through_head.evaluate(models["base"], copies[:_MEASURED]),
      "post, given the picture": through_head.evaluate(models["post"], copies[:_MEASURED]),
  }
  record = {
      "stages": {stage: _figures(r) for stage, r in reports.items()},
      "reconstruction": {stage: reports[stage]["scores"] for stage in ("tokenizer", "decoder")},
      "through_head": given_back,
  }
  report.write_page(
      folder / "index.html", "recipe.html.j2", title="From pictures to a model that draws, answers and edits",
      stages=[{"name": s, "what": what, **_figures(reports[s])} for s, what in STAGES.items()],
      duration=duration, total=sum(r["seconds"]["total"] for r in reports.values()),
      before=reports["decoder"]["scores_before"], after=reports["decoder"]["scores"], given_back=given_back,
      rebuilt=_rebuilt(models, copies[:_SHOWN]),
      drawings=_beside({n: models[n] for n in ("chameleon", "base", "post")}, captions[:_SHOWN]),
      edits=_beside({n: models[n] for n in ("post", "edit")}, by_kind["edit"][:_SHOWN]),
      edited=by_kind["edit"][:_SHOWN], captions=captions[:_SHOWN],
      stories=[(n, d) for n in ("post", "story") for d in _answers(models[n], by_kind["story"][:2], "auto")],
      rows=_score_rows(reports), models=_MODELS,
  )  # fmt: skip
  files.write_text(folder / "recipe.json", json.dumps(record, indent=2) + "\n")
  return record


def _report(folder: Path, stage: str) -> dict[str, Any]:
  try:
    return json.loads((folder / stage / "report.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as e:
    raise BadRequest(f"{folder / stage} has no finished run: launch/recipe_shapes.sh {folder} goes on with it") from e


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
  return {"steps": found["trained_steps"], "seconds": found["seconds"]["total"], "digest": found["params_digest"]}


def _answers(model: Model, documents: Sequence[Document], respond: Any) -> list[Document]:
  return model.generate([d.prompt() for d in documents], respond=respond)


def _beside(models: Mapping[str, Model], documents: Sequence[Document]) -> dict[str, list[np.ndarray]]:
  """Each model's pictures for the same prompts and seeds."""
  return {n: [d.images[-1].pixels for d in _answers(m, documents, "image")] for n, m in models.items()}


def _rebuilt(models: Mapping[str, Model], documents: Sequence[Document]) -> dict[str, list[np.ndarray]]:
  """Pictures given back by each stage's ways."""
  base, post = models["base"], models["post"]
  pictures = [d.images[-1].pixels for d in documents]
  features = base.encode(pictures)
  codebook_KC = np.asarray(base.params["vision_tokenizer/codebook"], np.float32)
  drawn = through_head.draw_all(base, documents)
  return {
      "the picture": pictures,
      "its codes, decoded": base.decode(through_head.nearest(features, codebook_KC)),
      "its features, decoded": base.decode(list(features)),
      "the same, decoder tuned": post.decode(list(features)),
      "through Orthus-base's head": base.decode(drawn),
  }


def _score_rows(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  rows = []
  for section, labels in SECTIONS.items():
    for name, label in labels.items():
      values = [reports[s].get("scores", {}).get(name) for s in _MODELS]
      if any(v is not None for v in values):
        rows.append({"section": section, "name": name, "label": label, "values": values})
  return rows

"""Benchmarks that ask for pictures: GenEval, DPG-Bench, WISE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from orthus_jax import files
from orthus_jax.data import images as images_lib
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.runs import prompts
from orthus_jax.evaluation.runs.prompts import Template
from orthus_jax.evaluation.runs.task import Drawing, Item

_METADATA = "evaluation_metadata.jsonl"
_WISE = ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json")


def _find(folder: Path, names: Sequence[str], what: str) -> list[Path]:
  """Files by name: in the folder, or one that is named itself."""
  if folder.is_file():
    return [folder]
  if found := [p for n in names for p in sorted(folder.rglob(n))]:
    return found
  raise BadRequest(f"{folder} has no {' or '.join(names)}: name {what}")


def _lines(path: Path) -> list[dict[str, Any]]:
  rows = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError("it has no prompt")
    except ValueError as e:
      raise BadRequest(f"{path}:{number} can't be read: {files.first_line(e)}") from e
    rows.append(row)
  return rows


class GenEval(Drawing):
  """NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png, as GenEval's own scorer reads them."""

  def __init__(self, data: Path, template: Template, *, samples: int = 4):
    self._template, self._samples = template, samples
    self.sources = _find(data, (_METADATA,), f"GenEval's {_METADATA}")[:1]
    self._rows = _lines(self.sources[0])

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    return [
        Item(f"{n:05d}/{s:04d}", functools.partial(prompts.drawing, self._template, row["prompt"]))
        for n, row in enumerate(self._rows)
        for s in range(self._samples)
    ]

  def path(self, item: Item) -> Path:
    prompt, sample = item.id.split("/")
    return Path(prompt, "samples", f"{sample}.png")

  def finish(self, out: Path) -> Path:
    for n, row in enumerate(self._rows):
      if (folder := out / f"{n:05d}").is_dir():  # not those beyond --limit, on which its scorer would stop
        files.write_text(folder / "metadata.jsonl", json.dumps(row))
    return out

  def id_of(self, row: Mapping[str, Any]) -> str:
    path = Path(row["filename"])
    return f"{path.parts[-3]}/{path.stem}"


class DpgBench(Drawing):
  """pictures/ITEM.png, each four pictures of a prompt as a square, as DPG-Bench's own scorer cuts them again."""

  def __init__(self, data: Path, template: Template, *, samples: int = 4):
    if samples not in (1, 4):
      raise BadRequest(f"DPG-Bench wants four pictures a prompt, or one, but --samples={samples}")
    self._template, self._samples = template, samples
    folder = data / "prompts" if (data / "prompts").is_dir() else data
    self.sources = sorted(folder.glob("*.txt"))
    if not self.sources:
      raise BadRequest(f"{data} has no prompts/*.txt: name DPG-Bench's folder")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    found = []
    for path in self.sources:
      text = path.read_text(encoding="utf-8").strip()
      name = path.name.split(".", 1)[0]
      draw = functools.partial(prompts.drawing, self._template, text)
      found += [Item(f"{name}/{s}", draw) for s in range(self._samples)]
    return found

  def path(self, item: Item) -> Path:
    name, sample = item.id.split("/")
    return Path("parts", name, f"{sample}.png")

  def finish(self, out: Path) -> Path:
    whole = out / "pictures"
    whole.mkdir(exist_ok=True)
    side = 2 if self._samples == 4 else 1
    for name in dict.fromkeys(item.id.split("/")[0] for item in self.items):
      parts = [out / "parts" / name / f"{s}.png" for s in range(self._samples)]
      if not all(p.is_file() for p in parts):
        continue
      pixels = np.stack([np.asarray(PIL.Image.open(p)) for p in parts])
      rows = [np.concatenate(list(pixels[r * side : (r + 1) * side]), axis=1) for r in range(side)]
      images_lib.save_png(whole / f"{name}.png", np.concatenate(rows, axis=0))
    return whole


class Wise(Drawing):
  """ID.png for each of its prompts."""

  def __init__(self, data: Path, template: Template, *, samples: int = 1):
    if samples != 1:
      raise BadRequest(f"WISE wants one picture a prompt, but --samples={samples}")
    self._template = template
    self.sources = _find(data, _WISE, "WISE's data folder")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    found = []
    for path in self.sources:
      try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(int(row["prompt_id"]), str(row["Prompt"])) for row in rows]
      except (ValueError, KeyError, TypeError) as e:
        raise BadRequest(f"{path} isn't a list of prompts with prompt_id and Prompt: {files.first_line(e)}") from e
      found += [Item(str(n), functools.partial(prompts.drawing, self._template, text)) for n, text in pairs]
    return found

  def path(self, item: Item) -> Path:
    return Path("pictures", f"{item.id}.png")

  def finish(self, out: Path) -> Path:
    return out / "pictures"

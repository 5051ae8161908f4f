"""Benchmarks that ask for pictures: GenEval, DPG-Bench, WISE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.runs import prompts
from orthus_jax.evaluation.runs.prompts import Template
from orthus_jax.evaluation.runs.task import METADATA, Drawing, Item

_WISE = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
_WISE_ENDS = {"legacy": ".json", "verified": "_verified.json"}


class GenEval(Drawing):
  """NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png, as GenEval's own scorer reads them."""

  def __init__(self, data: Path, template: Template, *, samples: int = 4):
    self._template, self.samples = template, samples
    self.sources = [reading.only(data, METADATA, "GenEval's prompts", deep=True)]
    path = self.sources[0]
    self._rows = reading.json_lines(path)
    self._prompts = [
        reading.field(row, "prompt", str, "GenEval's prompts, one a line", path, n) for n, row in enumerate(self._rows, 1)
    ]

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    return [
        Item(f"{n:05d}/{s:04d}", functools.partial(prompts.drawing, self._template, prompt))
        for n, prompt in enumerate(self._prompts)
        for s in range(self.samples)
    ]

  def path(self, item: Item) -> Path:
    prompt, sample = item.id.split("/")
    return Path(prompt, "samples", f"{sample}.png")

  def keep(self, out: Path, item: Item, answer: Document) -> None:
    number = item.id.split("/")[0]
    metadata = out / number / "metadata.jsonl"
    if not metadata.exists():  # ahead of the picture, as the original's scorer stops at a folder without it
      metadata.parent.mkdir(parents=True, exist_ok=True)
      files.write_text(metadata, json.dumps(self._rows[int(number)]))
    super().keep(out, item, answer)

  def finish(self, out: Path) -> Path:
    return out

  def id_of(self, row: Mapping[str, Any]) -> str:
    path = Path(row["filename"])
    return f"{path.parts[-3]}/{path.stem}"


class DpgBench(Drawing):
  """pictures/ITEM.png, each four pictures of a prompt as a square, as DPG-Bench's own scorer cuts them again."""

  def __init__(self, data: Path, template: Template, *, samples: int = 4):
    if samples not in (1, 4):
      raise BadRequest(f"DPG-Bench wants four pictures a prompt, or one, but --samples={samples}")
    self._template, self.samples = template, samples
    folder = data / "prompts" if (data / "prompts").is_dir() else data
    self.sources = sorted(folder.glob("*.txt"))
    if not self.sources:
      raise BadRequest(f"{data} has no prompts/*.txt: name DPG-Bench's folder")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    found = []
    for path in self.sources:
      text = "".join(reading.lines(path)).strip()
      name = path.name.split(".", 1)[0]
      draw = functools.partial(prompts.drawing, self._template, text)
      found += [Item(f"{name}/{s}", draw) for s in range(self.samples)]
    return found

  def path(self, item: Item) -> Path:
    name, sample = item.id.split("/")
    return Path("parts", name, f"{sample}.png")

  def finish(self, out: Path) -> Path:
    whole = out / "pictures"
    whole.mkdir(exist_ok=True)
    side = 2 if self.samples == 4 else 1
    for name in dict.fromkeys(item.id.split("/")[0] for item in self.items):
      parts = [out / "parts" / name / f"{s}.png" for s in range(self.samples)]
      if not all(p.is_file() for p in parts):
        continue
      pixels = np.stack([images_lib.load_image(p) for p in parts])
      rows = [np.concatenate(list(pixels[r * side : (r + 1) * side]), axis=1) for r in range(side)]
      images_lib.save_png(whole / f"{name}.png", np.concatenate(rows, axis=0))
    return whole


def _wise_files(data: Path) -> tuple[list[Path], str]:
  """WISE's files of prompts, but for merge.json and *_rewrite.json, which have the same prompts again; and their version."""
  if data.is_file():
    if data.name == "merge.json":  # all three of verified
      return [data], "verified"
    named = [v for v, end in _WISE_ENDS.items() if data.name.removesuffix(end).removesuffix("_rewrite") in _WISE]
    return [data], named[0] if named else "not told by its name"
  found = {v: [p for n in _WISE for p in sorted(data.rglob(n + end))] for v, end in _WISE_ENDS.items()}
  there = {version: paths for version, paths in found.items() if paths}
  if len(there) > 1:
    folders = " or ".join(f"--data={paths[0].parent} ({version})" for version, paths in there.items())
    raise BadRequest(f"{data} has both versions of WISE's prompts, under the same ids: name one's folder, {folders}")
  for version, paths in there.items():
    return paths, version
  raise BadRequest(f"{data} has no {_WISE[0]}.json or {_WISE[0]}_verified.json, nor others of WISE's: name its data folder")


class Wise(Drawing):
  """ID.png for each of its prompts, of one of its two versions, which have other prompts under the same ids."""

  def __init__(self, data: Path, template: Template, *, samples: int = 1):
    if samples != 1:
      raise BadRequest(f"WISE wants one picture a prompt, but --samples={samples}")
    self._template = template
    self.sources, version = _wise_files(data)
    self.protocol = {"wise_version": version}

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    found = []
    for path in self.sources:
      what = "WISE's prompts, with prompt_id and Prompt"
      for number, row in enumerate(reading.whole_json(path, list, what)):
        name = reading.field(row, "prompt_id", int, what, path, number, entry=True)
        text = reading.field(row, "Prompt", str, what, path, number, entry=True)
        found.append(Item(str(name), functools.partial(prompts.drawing, self._template, text)))
    return found

  def path(self, item: Item) -> Path:
    return Path("pictures", f"{item.id}.png")

  def finish(self, out: Path) -> Path:
    return out / "pictures"

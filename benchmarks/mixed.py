"""A file of requests of all kinds, from the built-in world's test split: 88 captions to draw, 72 questions, 30 edits and 10
stories of every 200, in a random order. Used by `generate.py --mixed` and `serve.py`.

    python benchmarks/mixed.py RUN DIR [--requests=200]        # DIR/requests.jsonl and its pictures
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
import random

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Text
from orthus_jax.data.sources.registry import open_world

_SHARES = {"caption_to_image": 88, "question": 72, "edit": 30, "story": 10}
_RESPOND = {"caption_to_image": "image", "question": "text", "edit": "image", "story": "auto"}


def write(config: Config, folder: Path, number: int = 200) -> Path:
  """Writes the file and its pictures; returns the file's path.

  Args:
    config: of the model that is to answer; its pictures have that resolution.
    folder: made if absent.
    number: of requests.
  """
  folder.mkdir(parents=True, exist_ok=True)
  chosen = [(kind, d) for kind, d in _documents(config, {k: -(-n * number // 200) for k, n in _SHARES.items()})][:number]
  random.Random(0).shuffle(chosen)
  lines = [json.dumps(_record(folder, n, kind, document)) for n, (kind, document) in enumerate(chosen)]
  file = folder / "requests.jsonl"
  file.write_text("\n".join(lines) + "\n")
  return file


def _documents(config: Config, wanted: dict[str, int]):
  world, counts = open_world(config), dict.fromkeys(wanted, 0)
  for number in itertools.count():
    if counts == wanted:
      return
    document = world[number % len(world)]
    if document is not None and counts.get(document.kind, 0) < wanted.get(document.kind, 0):
      counts[document.kind] += 1
      yield document.kind, document.prompt()


def _record(folder: Path, number: int, kind: str, prompt: Document) -> dict:
  text, files = "", []
  for segment in prompt.segments:
    if isinstance(segment, Text):
      text += segment.text
    else:
      files.append(f"{number}-{len(files)}.png")
      images_lib.save_png(folder / files[-1], segment.pixels)
      text += "<image>"
  return {"id": f"{kind}-{number}", "prompt": text, "images": files, "respond": _RESPOND[kind], "seed": number}


if __name__ == "__main__":
  from orthus_jax.inference.model import load

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run")
  parser.add_argument("folder", type=Path)
  parser.add_argument("--requests", type=int, default=200)
  options = parser.parse_args()
  print(write(load(options.run).config, options.folder, options.requests))

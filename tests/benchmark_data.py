"""Data of published benchmarks, made small."""

import json

import numpy as np
import PIL.Image

from orthus_jax.evaluation.runs.asking import MME_SUBTASKS


def save(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.full((20, 24, 3), len(path.stem) * 9 % 256, np.uint8)).save(path)


def write_pope(folder):
  """Two splits of two questions; the second picture of `popular` isn't there."""
  save(folder / "val2014" / "COCO_val2014_000000000001.jpg")
  row = {"image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog in the image?", "label": "yes"}
  lost = row | {"image": "COCO_val2014_000000000002.jpg"}
  for split in ("random", "popular"):
    rows = [{"question_id": n, **r} for n, r in enumerate((row, lost if split == "popular" else row), 1)]
    (folder / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)) + "\n")


def write_mme(folder):
  """A picture a subtask, in the release's layout; those of `scene` lie in folders of their own."""
  for subtask in MME_SUBTASKS:
    home = folder / "MME_Benchmark" / subtask
    pictures, texts = (home / "images", home / "questions_answers_YN") if subtask == "scene" else (home, home)
    save(pictures / f"0{len(subtask)}.png")
    texts.mkdir(exist_ok=True)
    (texts / f"0{len(subtask)}.txt").write_text("Is it?  Please answer yes or no.\tYes\nIs it not?\tNo\n")

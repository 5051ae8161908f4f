"""Speed of the input pipeline on prepared data: packed sequences a second, by how pictures are kept and sources mixed.

    python benchmarks/input_pipeline.py [--scratch=DIR] [--json]

Makes synthetic sources (a picture of 512 x 512 and about 300 words a document, so that a sequence of 4,096 positions holds
three of each), prepares them with pixels, JPEG files and features, and reads mixtures of them as training does, two threads.
Nothing is computed on a device. The files are in the system's memory when they are read: a disk must bring the bytes of a
sequence in time (1.5 MiB of features, 2.25 MiB of pixels, about 0.3 MB of JPEG). Sequences per second of wall time are what
a trainer sees; those per second of processor time are what one core can do, whatever else the machine is doing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import resource
import shutil
import tempfile
import time

import numpy as np
import PIL.Image

from orthus_jax.config import Config, from_dict
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.prepared import writer as prepared
from orthus_jax.data.prepared.pipeline import PreparedPipeline

_ROWS = 8  # of a batch


class Numbers:
  """A tokenizer whose texts are ids written out."""

  bos, pad, eoi, boi, sep, image = 0, 1, 8196, 8197, 8710, 8711

  def encode(self, text: str) -> list[int]:
    return [int(w) if w.isdigit() else 16391 for w in text.split()]

  def decode(self, ids) -> str:
    return " ".join(map(str, ids))

  def digest(self) -> str:
    return "numbers"

  def save(self, directory: Path) -> None:
    del directory


class Synthetic:
  """Documents of a smooth picture with some grain, and words about it."""

  def __init__(self, seed: int, n: int):
    self._seed, self._n = seed, n

  def __len__(self) -> int:
    return self._n

  def __getitem__(self, i: int) -> Document:
    rng = np.random.default_rng((self._seed, i))
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).resize((512, 512), 2)
    pixels = np.clip(np.asarray(coarse, np.int16) + rng.integers(-8, 9, (512, 512, 3)), 0, 255).astype(np.uint8)
    words = " ".join(map(str, rng.integers(16391, 65536, int(rng.integers(250, 332)))))
    segments = (Image(pixels), Text(words, True)) if i % 2 else (Text(words), Image(pixels, True))
    return Document(segments, id=f"{self._seed}-{i}")


def config(*mixture: Path) -> Config:
  data = dict(sequence_length=4096, images_per_row=3, learnt_images_per_row=3, text_length_power=0.5)
  if mixture:
    weights = [[str(p), float(1 + i % 3)] for i, p in enumerate(mixture)]
    data |= dict(source="prepared", mixture=weights)
  return from_dict(Config, {"data": data, "run": {"batch_size": _ROWS}})


def encode(pixels: np.ndarray) -> np.ndarray:
  """Numbers in the place of features: what they are doesn't change how fast they are read."""
  return np.random.default_rng(0).standard_normal((len(pixels), 1024, 256), np.float32)


def measure(pipeline: PreparedPipeline, steps: int) -> dict[str, float]:
  iterator = pipeline.iterate(0, steps + 4, threads=2, buffer=2)
  for _ in range(4):
    next(iterator)
  wall, cpu, padding = time.monotonic(), time.process_time(), []
  for _, batch in iterator:
    padding.append(float((batch.segment_ids_BT == 0).mean()))
  wall, cpu = time.monotonic() - wall, time.process_time() - cpu
  n = steps * _ROWS
  return {"per_second": n / wall, "per_cpu_second": n / cpu, "padding": float(np.mean(padding))}


def main() -> None:
  """Runs the benchmark and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--scratch", default=None, help="where to work; default: the system's temporary directory")
  parser.add_argument("--documents", type=int, default=48, help="of each source")
  parser.add_argument("--sources", type=int, nargs="+", default=[1, 2, 4, 8])
  parser.add_argument("--images", nargs="+", default=["features", "pixels", "jpeg"])
  parser.add_argument("--steps", type=int, default=24, help=f"of {_ROWS} sequences")
  parser.add_argument("--json", action="store_true")
  options = parser.parse_args()
  scratch = Path(tempfile.mkdtemp(dir=options.scratch, prefix="orthus-input-"))
  rows = []
  try:
    for images in options.images:
      folders = [scratch / f"{images}-{s}" for s in range(max(options.sources))]
      for s, folder in enumerate(folders):
        prepared.prepare(Synthetic(s, options.documents), Numbers(), config(), folder, images=images, encode=encode)
      for n in options.sources:
        pipeline = PreparedPipeline(Numbers(), config(*folders[:n]))
        rows.append({"images": images, "sources": n} | measure(pipeline, options.steps))
      for folder in folders:
        shutil.rmtree(folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  if options.json:
    print(json.dumps({"rows": rows, "memory_gib": memory}, indent=2))
    return
  print("| pictures as | sources | sequences/s | sequences per core-second | padding |\n|---|---|---|---|---|")
  for r in rows:
    speed = f"{r['per_second']:.0f} | {r['per_cpu_second']:.0f}"
    print(f"| {r['images']} | {r['sources']} | {speed} | {r['padding']:.1%} |")
  print(f"\npeak memory {memory:.2f} GiB")


if __name__ == "__main__":
  main()

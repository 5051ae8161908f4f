"""Preparing pictures beside what others do it with: read, decoded, resized, cut square, encoded as JPEG, written.

    python benchmarks/prepare.py --peers=PYTHON                # PYTHON of an environment with datasets and img2dataset
    python benchmarks/prepare.py --peers=PYTHON --pictures=4000 --edge=640 --rounds=3

Makes JPEG files of photographs with noise, and has each tool bring them to 512 x 512 at quality 95 with as many processes
(--processes): `orthus prepare`'s own function, Hugging Face `datasets.map` (Pillow, written as Arrow), and img2dataset (OpenCV,
its files read by file: addresses, written as tar). Rounds go through all three in turn; what counts is the ratio. With
--memory it compares the peak memory of 2,000 and of 20,000 pictures instead.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import PIL.Image
import skimage.data

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

_OURS = """
import resource, sys, time
if __name__ == "__main__":
  sys.path[:0] = [{root!r}, {tests!r}]
  from pathlib import Path
  import tiny
  from orthus_jax.data.prepared import writer
  from orthus_jax.data.sources.jsonl import Jsonl
  from orthus_jax.data.sources.layout import Options
  from orthus_jax.data.sources.source import LayoutSource
  config = tiny.config(
      model__vision_tokenizer__resolution=512, model__vision_tokenizer__channel_multipliers=(1,) * 5,
      data__sequence_length=2048, model__transformer__max_positions=2048)
  begin = time.monotonic()
  source = LayoutSource(Jsonl(Path({pictures!r}), Options(pairs="to_image")), resolution=512)
  writer.prepare(source, tiny.tokenizer(), config, Path({out!r}), images="jpeg", processes={processes})
  peak = [resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  print(time.monotonic() - begin, *peak)
"""
_DATASETS = """
import time
if __name__ == "__main__":
  import io, datasets, PIL.Image
  datasets.disable_progress_bars()
  def work(row):
    image = row["image"].convert("RGB")
    scale = 512 / min(image.size)
    image = image.resize([round(e * scale) for e in image.size], PIL.Image.Resampling.LANCZOS)
    left, top = (image.width - 512) // 2, (image.height - 512) // 2
    out = io.BytesIO()
    image.crop((left, top, left + 512, top + 512)).save(out, "JPEG", quality=95)
    return {{"image": {{"bytes": out.getvalue(), "path": None}}}}
  begin = time.monotonic()
  data = datasets.load_dataset("imagefolder", data_dir={pictures!r}, cache_dir={out!r}, split="train")
  data.map(work, num_proc={processes}, features=data.features, writer_batch_size=100)
  print(time.monotonic() - begin)
"""
_IMG2DATASET = """
import time
if __name__ == "__main__":
  import img2dataset
  begin = time.monotonic()
  img2dataset.download(
      url_list={urls!r}, output_folder={out!r}, input_format="parquet", url_col="url", caption_col="caption",
      image_size=512, resize_mode="center_crop", resize_only_if_bigger=False, encode_quality=95, output_format="webdataset",
      processes_count={processes}, thread_count=16, number_sample_per_shard=500, enable_wandb=False)
  print(time.monotonic() - begin)
"""


def _write_pictures(folder: Path, n: int, edge: int) -> None:
  """JPEG files of crops of photographs, each with noise of its own, and rows in our layout and in imagefolder's."""
  photographs = [PIL.Image.fromarray(p) for p in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())]
  rng = np.random.default_rng(0)
  noise = rng.normal(0, 5, (edge + 64, edge + 64, 3))
  rows = []
  for i in range(n):
    photograph = photographs[i % len(photographs)]
    size = int(rng.integers(150, min(photograph.size)))
    x, y = (int(rng.integers(0, e - size + 1)) for e in photograph.size)
    pixels = np.asarray(photograph.crop((x, y, x + size, y + size)).resize((edge, edge)), np.float32)
    a, b = rng.integers(0, 64, 2)
    pixels = (pixels + noise[a : a + edge, b : b + edge]).clip(0, 255).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=90)
    rows.append({"image": f"{i:06d}.jpg", "text": f"picture {i} of a thing"})
  (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _run(python: str, program: str, folder: Path, **values: object) -> list[float]:
  """The numbers that a program prints last."""
  out = folder / "out"
  shutil.rmtree(out, ignore_errors=True)
  file = folder / "program.py"
  file.write_text(program.format(out=str(out), root=str(_ROOT), tests=str(_ROOT / "tests"), **values))
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu", "NO_ALBUMENTATIONS_UPDATE": "1"}
  done = subprocess.run([python, file], env=env, cwd=folder, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(f"{python} ended with {done.returncode}: {done.stderr[-2000:]}")
  return [float(n) for n in done.stdout.strip().splitlines()[-1].split()]


def _memory(folder: Path, processes: int) -> None:
  for n in (2_000, 20_000):
    pictures = folder / str(n)
    pictures.mkdir()
    _write_pictures(pictures, n, 512)
    seconds, own, others = _run(sys.executable, _OURS, folder, pictures=str(pictures), processes=processes)
    print(f"{n:,} pictures, {n / seconds:.0f}/s: at most {own / 1024:.0f} MiB in this process, {others / 1024:.0f} in another")
    shutil.rmtree(pictures)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peers", help="a Python that has datasets and img2dataset")
  parser.add_argument("--pictures", type=int, default=2000)
  parser.add_argument("--edge", type=int, default=512)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--memory", action="store_true")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root)
    if options.memory:
      _memory(folder, options.processes)
      return
    pictures = folder / "pictures"
    pictures.mkdir()
    _write_pictures(pictures, options.pictures, options.edge)
    bare = folder / "bare"  # for datasets, whose imagefolder wants other names
    shutil.copytree(pictures, bare, ignore=lambda *_: ["metadata.jsonl"], copy_function=os.link)
    import pyarrow as pa
    import pyarrow.parquet

    urls = [f"file://{p}" for p in sorted(pictures.glob("*.jpg"))]
    table = pa.table({"url": urls, "caption": [f"picture {i}" for i in range(len(urls))]})
    pyarrow.parquet.write_table(table, folder / "urls.parquet")
    tools = {"orthus prepare": (sys.executable, _OURS, {"pictures": str(pictures)})}
    if options.peers:
      tools["datasets.map"] = (options.peers, _DATASETS, {"pictures": str(bare)})
      tools["img2dataset"] = (options.peers, _IMG2DATASET, {"urls": str(folder / "urls.parquet")})
    rates: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(options.rounds):
      for name in list(tools) if number % 2 == 0 else list(tools)[::-1]:
        python, program, values = tools[name]
        seconds = _run(python, program, folder, processes=options.processes, **values)[0]
        rates[name].append(options.pictures / seconds)
        print(f"round {number + 1}: {name} {rates[name][-1]:.0f} pictures/s", flush=True)
    own = rates["orthus prepare"]
    for name, theirs in rates.items():
      ratio = statistics.median(a / b for a, b in zip(own, theirs))
      print(f"{name:<16} {statistics.median(theirs):6.0f} pictures/s   we do {ratio:.2f} times as many")


if __name__ == "__main__":
  main()

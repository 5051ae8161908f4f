"""Speed and memory of `orthus convert` on a checkpoint of the published size, against a plain copy of its files.

    python benchmarks/convert.py --scratch=DIR

Makes a random bfloat16 checkpoint in the published layout, then copies, imports and exports it, each in a process of its
own with the files' pages dropped beforehand; compares what came out with what went in, bit for bit; prints a table and
removes everything. It needs three times the checkpoint's size on the disk: 43 GB at the default size.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

from orthus_jax.config import ModelConfig, SamplingConfig, TransformerConfig
from orthus_jax.data.tokenizer_training import train_tokenizer
from orthus_jax.interop import names, safetensors
from orthus_jax.interop.published_config import write_config
from orthus_jax.models.orthus import describe
from orthus_jax.training.checkpoints import zarr_arrays

BF16 = np.dtype(ml_dtypes.bfloat16)
SHARD = 5_000_000_000  # bytes


def make(folder: Path, model: ModelConfig) -> int:
  """Writes a random checkpoint; returns its arrays' bytes."""
  folder.mkdir(parents=True)
  shapes = {k: p.shape for k, p in names.table(describe(model)[1]).items()}
  groups: list[list[str]] = [[]]
  held = 0
  for key, shape in shapes.items():
    size = int(np.prod(shape)) * BF16.itemsize
    if groups[-1] and held + size > SHARD:
      groups.append([])
      held = 0
    groups[-1].append(key)
    held += size
  rng = np.random.Generator(np.random.SFC64(0))
  weight_map = {}
  for i, keys in enumerate(groups, 1):
    file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
    weight_map |= dict.fromkeys(keys, file)
    with safetensors.Writer(folder / file, [(k, BF16, shapes[k]) for k in keys]) as writer:
      for key in keys:
        size = int(np.prod(shapes[key]))
        for begin in range(0, size, zarr_arrays.PIECE // BF16.itemsize):
          n = min(size - begin, zarr_arrays.PIECE // BF16.itemsize)
          # Any bits but those of infinities and NaNs, whose exponents are all ones.
          bits = rng.integers(0, 1 << 64, -(-n // 4), np.uint64).view(np.uint16)[:n] & np.uint16(0xBFFF)
          writer.write(key, bits, offset=begin * BF16.itemsize)
  size = sum(int(np.prod(s)) for s in shapes.values()) * BF16.itemsize
  index = {"metadata": {"total_size": size}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text(json.dumps(write_config(model, SamplingConfig(), dtype="bfloat16")))
  codes = model.vision_tokenizer.codes
  train_tokenizer(["a red circle"] * 10, codes + 400, codes).save(folder)
  return size


def measure(command: list[str], folder: Path, *, settle: float) -> tuple[float, int]:
  """Seconds and peak resident bytes of a command that reads `folder`, none of whose pages is in memory before."""
  os.sync()
  time.sleep(settle)  # a disk still forgets what was deleted
  for file in folder.rglob("*"):
    if file.is_file():
      handle = os.open(file, os.O_RDONLY)
      os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
      os.close(handle)
  begin, peak = time.monotonic(), 0
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  # The system's own count for children starts at what this process held when it made them.
  while process.poll() is None:
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
    time.sleep(0.02)
  seconds = time.monotonic() - begin
  if process.returncode:
    raise SystemExit(f"{' '.join(command)} failed")
  return seconds, peak


def identical(a: Path, b: Path) -> bool:
  """Whether two directories hold the same arrays, bit for bit."""

  def entries(folder: Path) -> dict[str, safetensors.Entry]:
    return {k: e for f in folder.glob("*.safetensors") for k, e in safetensors.read_header(f).items()}

  ours, theirs = entries(a), entries(b)
  if {k: (e.dtype, e.shape) for k, e in ours.items()} != {k: (e.dtype, e.shape) for k, e in theirs.items()}:
    return False
  return all(ours[k].read().tobytes() == theirs[k].read().tobytes() for k in ours)


def main() -> None:
  """Runs the benchmark and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--scratch", default=None, help="where to work; default: the system's temporary directory")
  parser.add_argument("--layers", type=int, default=TransformerConfig().layers)
  parser.add_argument("--vocabulary", type=int, default=TransformerConfig().vocab_size)
  parser.add_argument("--repeat", type=int, default=2, help="runs of each, of which the fastest counts")
  parser.add_argument("--memory", action="store_true", help="no copies, no waiting: seconds say nothing then")
  parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
  options = parser.parse_args()
  transformer = TransformerConfig(layers=options.layers, vocab_size=options.vocabulary)
  scratch = Path(tempfile.mkdtemp(dir=options.scratch, prefix="orthus-convert-"))
  orthus = [sys.executable, "-m", "orthus_jax.cli", "convert"]
  try:
    source, native, out = scratch / "published", scratch / "native", scratch / "out"
    size = make(source, ModelConfig(transformer=transformer))
    copies = {} if options.memory else {"cp -r": "", "cp -r, then sync": " && sync"}
    settle = 0.0 if options.memory else 3.0
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in (*copies, "import", "export")}
    for _ in range(options.repeat):
      for name, tail in copies.items():
        runs[name].append(measure(["sh", "-c", f"cp -r {source} {scratch / 'copy'}{tail}"], source, settle=settle))
        shutil.rmtree(scratch / "copy")
      runs["import"].append(measure([*orthus, f"--from={source}", f"--to={native}"], source, settle=settle))
      runs["export"].append(measure([*orthus, f"--from={native}", f"--to={out}"], native, settle=settle))
      same = identical(source, out)
      shutil.rmtree(native)
      shutil.rmtree(out)
    # The fastest of each, as other work on the machine only ever slows one down; the most memory.
    rows = {name: (min(s for s, _ in each), max(m for _, m in each)) for name, each in runs.items()}
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  if options.json:
    figures = {k: {"seconds": s, "peak_bytes": m} for k, (s, m) in rows.items()}
    print(json.dumps({"bytes": size, "identical": same, **figures}, indent=2))
    return
  print(f"{size / 1e9:.2f} GB in {len(names.table(describe(ModelConfig(transformer=transformer))[1]))} arrays\n")
  print("| | seconds | GB/s | of cp -r | peak memory |\n|---|---|---|---|---|")
  for name, (seconds, peak) in rows.items():
    share = f"{rows['cp -r'][0] / seconds:.2f}" if "cp -r" in rows else "–"
    print(f"| {name} | {seconds:.1f} | {size / seconds / 1e9:.3f} | {share} | {peak / 2**30:.2f} GiB |")
  print(f"\nround trip bit-identical: {'yes' if same else 'NO'}")


if __name__ == "__main__":
  main()

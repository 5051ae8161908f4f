"""The table of `benchmarks/gpu.sh`."""

import json
from pathlib import Path
import subprocess
import sys

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STEP = {
    "device": "1 x NVIDIA H200", "parameters": 7.1e9, "rows": 6, "positions": 4096, "step_seconds": 1.9, "mfu_causal": 0.51,
    "tokens_per_second": 12_900.0, "memory_gib": 120.0,
}  # fmt: skip
DRAWN = """NVIDIA H200: 7,134.5M parameters
| system | batch | patches/s | ratio to PyTorch | ms per position | seconds a picture | limit | share of the limit |
|---|---:|---:|---:|---:|---:|---:|---:|
| orthus_jax | 1 | 200.0 | - | 5.00 | 5.100 | 3.600 | 71% |
| orthus_jax | 64 | 3,500.0 | - | 18.0 | 0.290 | 0.150 | 52% |
"""


def test_every_part_has_a_row_and_a_part_that_failed_says_why(tmp_path):
  parts = {
      "step": (json.dumps(STEP), "", "0 90 110"), "draw": (DRAWN, "", "0 60 110"), "draw_int8": ("", "", "124 90 90"),
      "draw_few_steps": ("", "a\northus: out of | memory\n", "1 12 70"),
      "tests": ("..\n31 passed, 2 skipped in 40.1s\n", "", "0 50 120"),
  }  # fmt: skip
  for name, (log, err, status) in parts.items():
    for ending, text in (("log", log), ("err", err), ("status", status)):
      (tmp_path / f"{name}.{ending}").write_text(text)
  done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu_table.py"), str(tmp_path)], capture_output=True, text=True)
  assert not done.returncode, done.stderr
  rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines()[4:] if line}
  assert "12,900 tokens/s" in rows["training step"] and "MFU 51.0%" in rows["training step"]
  one = rows["drawing, 100 steps, bfloat16, batch 1"]
  assert "5.100 s a picture" in one and "71% of the memory's limit" in one and "5 s a picture" in one.split(" | ")[-1]
  assert "0.29 s a picture" in rows["drawing, 100 steps, bfloat16, batch 64"].split(" | ")[-1]
  assert "it wasn't run" in rows["drawing, 100 steps, bfloat16"]
  assert "not done after 90 s" in rows["drawing, 100 steps, weights and cache in int8"]
  assert "exit status 1 after 12 s: orthus: out of / memory" in rows["drawing, 25 steps of DPM-Solver++"]
  assert "31 passed, 2 skipped" in rows["tests on the device: attention, layers, heads, solvers"]
  assert "CPU" not in done.stdout

"""`benchmarks/gpu.sh`: each part becomes rows of one table, and one that gives no figure a row that says why."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest
import tiny

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import generate  # noqa: E402
import gpu_generation  # noqa: E402
import gpu_table  # noqa: E402
import train_step  # noqa: E402

from orthus_jax.config import Config, from_dict  # noqa: E402


def cells(text: str) -> dict[str, list[str]]:
  """A table's rows by their first cell."""
  rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
  assert {len(r) for r in rows} == {len(gpu_table.COLUMNS)}
  return {r[0]: r for r in rows[1:]}


def test_every_part_has_rows_or_a_reason(tmp_path):
  drawn = str(gpu_table.row("a picture, batch 1, a|b", measured="4.1 s", share="87%", memory=3 << 30))
  logs = {
    "step": "JAX found 1 device\nValueError: too large\n",
    "generation1": f"making the weights\n{drawn}\nbatch 1, int8\nFinished XLA compilation of jit(advance) in 99.0 sec\n",
    "checks": "",
    "tests": "tests/test_a.py::test_x PASSED [ 1%]\ntests/test_a.py::test_y[a b] FAILED [ 2%]\ntests/test_a.py::test_z ",
  }
  # Name, limit, seconds, status.
  parts = ["step 130 12 1", "generation1 180 180 124", "generation 4 0 skipped", "checks 80 7 0", "tests 60 60 137"]
  (tmp_path / "parts").write_text("".join(p.replace(" ", "\t") + "\n" for p in parts))
  for name, log in logs.items():
    (tmp_path / f"{name}.log").write_text(log)
  found = cells(gpu_table.page(gpu_table.table(tmp_path), small=False))
  assert found["a picture, batch 1, a/b"][1:6] == ["4.1 s", "", "87%", "", "3.0 GiB"]
  reasons = {name: row[-1] for name, row in found.items() if row[1] == "**failed**"}
  assert reasons == {
    "step": "ended with status 1: ValueError: too large (12 s)",
    "generation1": "not done in 180 s; last heard: Finished XLA compilation of jit(advance) in 99.0 sec (180 s)",
    "generation": "no time was left for it (0 s)",
    "checks": "it ended well and printed no figure (7 s)",
    "tests": "not done in 60 s; last heard: tests/test_a.py::test_z (60 s)",
  }
  assert found["fast tests"][1] == "1 passed, 1 failed" and found["fast tests"][-1] == "failed: test_a.py::test_y[a b]"


def test_the_steps_figures_become_a_row():
  config = from_dict(Config, train_step._SMALL | {"run": dict(batch_size=8, peak_tflops=0.5)})
  figures = train_step.report(train_step.Ours(config, stage="post", made=False), [2.0, 3.0], memory=5 << 30)
  log = "noise {\n" + json.dumps({"system": "ours", **figures, "compile_seconds": 7.0}, indent=2) + "\nmore\n"
  (row,) = gpu_table.read("step", log)
  assert row["what"] == "training step, 8 rows of 256 positions" and row["memory"] == "5.0 GiB"
  assert row["measured"] == f"{figures['tokens_per_second']:,.0f} tokens/s" and figures["tokens_per_second"] > 900
  assert row["share of it"] == f"{figures['limit_seconds'] / 2.0:.0%}" and "compiled in 7 s" in row["note"]
  # What is computed is more than MFU counts.
  assert figures["limit_seconds"] / 2.0 > figures["mfu_causal"] > 0


@pytest.mark.slow
def test_a_choice_that_fails_leaves_the_next_to_be_drawn(monkeypatch):
  small = tiny.lively_model()
  tokens = generate.Tokens(small.config)
  model = generate.FeatureModel.create(small.config, small.params, tokens)
  monkeypatch.setitem(gpu_generation.CHOICES, "broken", dict(solver="none such"))
  bad, good = (gpu_generation.measure(model, 1, name, 1e9) for name in ("broken", "DDIM, int8 weights and cache"))
  assert bad["measured"] == "**failed**" and "none such" in bad["note"]
  seconds, limit = (float(good[c].split()[0]) for c in ("measured", "limit"))
  assert seconds > 0 and limit > 0 and good["aim"] == "≤ 5 s" and "compiling included" in good["note"]


@pytest.mark.slow
def test_the_script_runs_on_after_a_part_that_failed(tmp_path):
  out = tmp_path / "table.md"
  asked = [ROOT / "benchmarks/gpu.sh", "--small", f"--out={out}", "--only=step,checks,tests", "--config=nowhere.py"]
  env = {**os.environ, "PYTHON": sys.executable}
  done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  found = cells(out.read_text())
  assert found["step"][1] == "**failed**" and "nowhere.py" in found["step"][-1]
  failed = [name for name, row in found.items() if row[1] == "**failed**"]
  assert failed == ["step"] and "passed, 0 failed" in found["fast tests"][1]
  assert any("attention" in name for name in found) and any("solver kernel" in name for name in found)
  assert "trial of the commands" in out.read_text() and "checks, at most" in done.stdout  # it tells what it is at
  assert subprocess.run([ROOT / "benchmarks/gpu.sh", "--only=steps"], capture_output=True).returncode == 2

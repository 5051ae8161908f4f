"""What is printed where standard output is ASCII, closed early, full or not there; and environments that jax can't serve."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from orthus_jax import cli
from orthus_jax.commands import runs
def main(argv):
  for i in range(int(argv[0])):
    print("caf\\u00e9 \\U0001f600", i)
  open(argv[1], "w").write("done")
  return 0
runs.main = main
sys.exit(cli.main())
"""


def run(tmp_path, lines, stdout=subprocess.PIPE, **environment):
  command = [sys.executable, "-c", PROGRAM, "runs", str(lines), str(tmp_path / "kept")]
  return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, close_fds=True)


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "latin-1"},
])  # fmt: skip
def test_letters_that_an_encoding_lacks_are_escaped(environment, tmp_path):
  out, err = (done := run(tmp_path, 1, **environment)).communicate()
  assert done.returncode == 0 and not err, err
  encoding = environment.get("PYTHONIOENCODING", "ascii")
  shown = out.decode(encoding)
  assert "\\U0001f600 0" in shown and ("café" if encoding == "latin-1" else "caf\\xe9") in shown


@pytest.mark.parametrize("lines", (1, 100_000))
def test_a_reader_that_leaves_ends_it_quietly_and_the_work_is_kept(lines, tmp_path):
  process = run(tmp_path, lines)
  if lines > 1:
    assert process.stdout.readline()
  process.stdout.close()
  err = process.stderr.read()
  assert process.wait() == 141 and not err, err
  assert (tmp_path / "kept").read_text() == "done"


def test_a_full_disk_behind_standard_output_is_told(tmp_path):
  with open("/dev/full", "wb") as full:
    process = run(tmp_path, 10, stdout=full)
    err = process.stderr.read()
  assert process.wait() == 1 and err == b"orthus: standard output couldn't be written: No space left on device\n"
  assert (tmp_path / "kept").read_text() == "done"


def test_no_standard_output_at_all(tmp_path):
  command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", PROGRAM, "runs", "3", str(tmp_path / "kept")]
  done = subprocess.run(command, capture_output=True)
  assert done.returncode == 0 and not done.stderr and (tmp_path / "kept").read_text() == "done"


@pytest.mark.parametrize("verb, environment, message", [
    ("train", {"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: there is no such device here"),
    ("generate", {"JAX_PLATFORMS": "nonsense"}, "unset it, or set it to cpu"),
    ("evaluate", {"XLA_FLAGS": "--xla_nonsense=3"}, "Unknown flag in XLA_FLAGS: --xla_nonsense=3"),
    ("convert", {"XLA_FLAGS": "nowhere"}, 'Could not open file "nowhere"'),
    ("plan", {"XLA_FLAGS": "--xla_cpu_enable_fast_math=maybe"}, "Couldn't interpret value maybe"),
    ("prepare", {"XLA_FLAGS": "--xla_nonsense"}, "Unknown flag in XLA_FLAGS: --xla_nonsense"),
])  # fmt: skip
def test_an_environment_that_jax_cannot_serve_is_one_line(verb, environment, message, tmp_path):
  # One process a case: jax reads its environment once.
  (tmp_path / "config.json").write_text("{}")
  shapes = f"--config={Path(__file__).parent.parent}/configs/shapes.py"
  argv = {
      "train": [shapes, f"--workdir={tmp_path}/run"], "generate": ["RUN", "--prompt=a"], "evaluate": ["RUN"],
      "convert": [f"--from={tmp_path}", f"--to={tmp_path}/to"], "prepare": [shapes], "plan": [shapes, "--topology=cpu:1"],
  }[verb]  # fmt: skip
  kept = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "ORTHUS_CACHE": str(tmp_path / "cache")} | environment
  done = subprocess.run(
      [sys.executable, "-m", "orthus_jax.cli", verb, *argv], capture_output=True, text=True, env=os.environ | kept, cwd=tmp_path
  )
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]

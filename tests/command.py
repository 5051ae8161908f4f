"""The command `orthus` in a process of its own, on one device, as users run it."""

import os
import subprocess
import sys


def orthus(*argv: str) -> subprocess.CompletedProcess:
  """Runs a command that must succeed; returns what it printed."""
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
      [sys.executable, "-m", "orthus_jax.cli", *argv], env=environment, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done

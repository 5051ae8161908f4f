"""The command `orthus` in a process of its own, on one device."""

import os
import subprocess
import sys

import quick


def orthus(*argv: str, as_users: bool = False) -> subprocess.CompletedProcess:
  """Runs a command that must succeed; returns what it printed.

  Args:
    argv: its words.
    as_users: compile as users have it, which takes longer.
  """
  environment = os.environ | ({"XLA_FLAGS": ""} if as_users else quick.environment())
  done = subprocess.run(
      [sys.executable, "-m", "orthus_jax.cli", *argv], env=environment, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done

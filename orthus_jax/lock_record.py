"""What a lock's file says: who holds it (`lock.py`)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
import shlex
import socket
import sys
import time
from typing import Any
import uuid


def mine() -> dict[str, Any]:
  """The record of this process, unlike any other's."""
  return {
      "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
      "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "machine": machine(), "id": uuid.uuid4().hex,
  }  # fmt: skip


def machine() -> str:
  """What tells machines, and their boots, apart."""
  try:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return socket.gethostname()


def read(path: Path) -> dict[str, Any]:
  """A lock's record; {} where there is none, or none that can be read."""
  try:
    there = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return there if isinstance(there, dict) else {}


def write(path: Path, record: dict[str, Any], beat: int) -> None:
  """Writes it, in place and always of one length, so that no reader meets half of it.

  Args:
    path: the lock's file, which is there.
    record: from `mine`.
    beat: how many times it was written before.
  """
  text = (json.dumps(record | {"beat": f"{beat:09}"}) + "\n").encode()
  file = os.open(path, os.O_WRONLY)
  try:
    os.pwrite(file, text, 0)
    if not beat:
      os.ftruncate(file, len(text))
  finally:
    os.close(file)  # upon which network file systems show it to others


def held(path: Path, *, patience: float) -> bool:
  """Whether somebody seems to hold the lock, without asking for it.

  Args:
    path: the lock's file.
    patience: seconds without a sign of life after which another machine's process counts as dead.
  """
  if not (there := read(path)):
    return False
  try:
    if there.get("machine") != machine():
      return time.time() - path.stat().st_mtime < patience
    file = os.open(path, os.O_RDONLY)
  except OSError:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as e:
    return e.errno in (errno.EWOULDBLOCK, errno.EACCES)
  finally:
    os.close(file)
  return False


def holder(there: dict[str, Any]) -> str:
  """Who a record says holds the lock."""
  if not there:
    return "another command works there"
  command = str(there.get("command"))
  command = command if len(command) <= 120 else f"{command[:120]} …"
  return (
      f"another command works there since {there.get('since')} (process {there.get('pid')} on {there.get('host')}: {command})"
  )

"""Threads that save run where the step leaves a core idle."""

from __future__ import annotations

from concurrent import futures
import os
import sys
import threading


def thread(name: str) -> futures.ThreadPoolExecutor:
  """One thread, which and whose children give way to others: on Linux, priorities are a thread's."""
  return futures.ThreadPoolExecutor(1, name, initializer=_yield_to_others)


def _yield_to_others() -> None:
  if sys.platform == "linux":
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)

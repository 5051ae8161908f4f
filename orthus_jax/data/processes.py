"""Spans of work done in other processes, and handed on in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
from multiprocessing import resource_tracker
import os
from pathlib import Path
import signal
import sys
import threading
from typing import Any, TypeVar

T = TypeVar("T")


def ordered(
    work: Callable[[int, int], T], spans: Iterable[tuple[int, int]], processes: int, *, alone_if_broken: bool = False
) -> Iterator[T]:
  """What `work` gives for each span, in the order of the spans, whichever process it came from.

  Args:
    work: called with (first, end); it is pickled once for each process.
    spans: the pairs.
    processes: how many to start; 0: this one does it.
    alone_if_broken: where one of them is killed, or none can be started, this process does the rest.

  Raises:
    concurrent.futures.process.BrokenProcessPool: one of them was killed, or none can be started.
  """
  spans, given = iter(spans), list[tuple[int, int]]()
  if processes:
    try:
      yield from _spread(work, spans, processes, given)
    except concurrent.futures.process.BrokenProcessPool:
      if not alone_if_broken:
        raise
  yield from itertools.starmap(work, itertools.chain(given, spans))


def _spread(
    work: Callable[[int, int], T], spans: Iterator[tuple[int, int]], processes: int, given: list[tuple[int, int]]
) -> Iterator[T]:
  """`ordered` by processes; `given` is kept to be the spans that they were given and that aren't handed on."""

  def submit(n: int) -> list[concurrent.futures.Future]:
    more = list(itertools.islice(spans, n))
    given.extend(more)
    return [pool.submit(_work_on, *span) for span in more]

  context = multiprocessing.get_context("spawn")  # a fork would take JAX's threads' locks along
  _quiet_tracker()
  try:
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(work,))
  except (OSError, NotImplementedError, ImportError) as e:  # no semaphores here
    raise concurrent.futures.process.BrokenProcessPool(str(e)) from e
  with pool:
    try:
      try:
        with _interrupts_later():
          waiting = submit(2 * processes + 2)
      except OSError as e:  # no processes
        raise concurrent.futures.process.BrokenProcessPool(str(e)) from e
      while waiting:
        done = waiting.pop(0).result()
        waiting += submit(1)
        given.pop(0)  # only now: had that failed, it would be done again
        yield done
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _quiet_tracker() -> None:
  """Has the process that takes a pool's semaphores away, where ours ends by os._exit, not warn of them."""
  before = os.environ.get("PYTHONWARNINGS")
  os.environ["PYTHONWARNINGS"] = "ignore"
  try:
    resource_tracker.ensure_running()
  except OSError:
    pass  # the pool says it
  finally:
    os.environ.pop("PYTHONWARNINGS")
    if before is not None:
      os.environ["PYTHONWARNINGS"] = before


def cores() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_start() -> bool:
  """Whether a process can be started from here without running anybody's script in it.

  What is spawned imports the main module anew. The command line is made for that; a script that trains without the
  customary `if __name__ == "__main__"` isn't.
  """
  main = sys.modules["__main__"]
  if multiprocessing.parent_process() is not None:
    return False
  spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
  name = spec.name if spec is not None else Path(file).name if file else ""
  return name in ("", "orthus") or name.partition(".")[0] in ("orthus_jax", "pytest")


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
  """A block that Ctrl-C ends only behind it, and in which processes start that it doesn't reach, importing even."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Callable[[int, int], Any]


def _begin(work: Callable[[int, int], Any]) -> None:
  """In a process of its own: an interrupt is its parent's business, and it doesn't outlive it."""
  global _work
  _work = work
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent: Any = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work_on(first: int, end: int) -> Any:
  return _work(first, end)

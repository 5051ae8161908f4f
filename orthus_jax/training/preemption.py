"""Notices that this process is about to end (SIGTERM and its like), and what follows: one checkpoint, then an exit status.

Signals are answered from a thread of their own, which a wake-up file descriptor tells of them, since Python runs its handlers
between two of its own instructions alone, and a step or a compilation is one that takes long. While there is nothing to
save, a signal ends the process at once.

Among several processes jax's own notice (`multihost_utils.reached_preemption_sync_point`) has all of them stop after the
same step, whichever was told, be it by SIGTERM, by SLURM or by a TPU's maintenance event.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
import os
import signal
import socket
import threading
import time
from types import TracebackType

from jax.experimental import multihost_utils

from orthus_jax import errors, lock
from orthus_jax.training import hosts, terminal

_log = logging.getLogger(__name__)
# What schedulers, submitit and Lightning send some time before they take the machine, and what a terminal sends as it goes.
# They come more than once, or ahead of SIGTERM: a second one of these hastens nothing.
_NOTICES = tuple(
    s for n in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if (s := getattr(signal, n, None)) is not None
)

# timeout(1) sends its signal to the command and to its process group, which the command is of: twice in a moment is once.
_ONE_REQUEST = 0.03  # seconds


class Signals:
  """SIGTERM, SIGINT and the notices that precede them, from here to the end of the block.

  A notice that is ignored when the process starts, as nohup has it of SIGHUP, stays so. In the main thread of a process;
  elsewhere (in a notebook's thread, say) it does nothing.
  """

  def __init__(self) -> None:
    self._received: int | None = None
    self._asked = 0  # times that SIGTERM or SIGINT came
    self._saving = False
    self.leaving: Callable[[], None] = lambda: None  # what else is to be done where the process ends at once
    self._active = threading.current_thread() is threading.main_thread()

  def __enter__(self) -> Signals:
    if not self._active:
      return self
    self._near, self._far = socket.socketpair()
    self._far.setblocking(False)
    self._old_fd = signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
    self._stderr = terminal.may_be_lost()
    notices = tuple(s for s in _NOTICES if signal.getsignal(s) != signal.SIG_IGN)
    # Among several processes SIGTERM belongs to jax until its notice has come.
    self._watched = notices + ((signal.SIGINT,) if hosts.several() else (signal.SIGTERM, signal.SIGINT))
    self._old = {s: signal.signal(s, _nothing) for s in self._watched}
    threading.Thread(target=self._listen, name="signals", daemon=True).start()
    return self

  def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
    if self._active:
      signal.set_wakeup_fd(self._old_fd)
      for s, handler in self._old.items():
        signal.signal(s, handler)
      self._far.close()
      terminal.give_back(self._stderr)

  def _listen(self) -> None:
    latest: dict[int, float] = {}
    while number := self._near.recv(1):
      now = time.monotonic()
      if number[0] not in self._watched or now - latest.get(number[0], -1.0) < _ONE_REQUEST:
        continue
      latest[number[0]] = now
      first, self._received = self._received is None, self._received or number[0]
      self._asked += number[0] not in _NOTICES
      if self._asked > 1:
        self._end("a second signal: stopping at once", errors.AT_ONCE)
      if not self._saving:
        self._end("stopped; there was nothing to save", status(self._received))
      if not first:
        continue
      if hosts.several():
        os.kill(os.getpid(), signal.SIGTERM)  # which jax tells the others of
      more = "SIGTERM twice" if number[0] in _NOTICES else "once more"
      _log.warning("%s: the step under way ends, then a checkpoint is saved; %s stops at once", name(number[0]), more)
    self._near.close()

  def _end(self, why: str, status: int) -> None:
    last = threading.Thread(target=self.leaving, daemon=True)
    last.start()
    last.join(2)  # a file system that hangs may be why somebody stops it
    _leave(why, status)

  def saving(self, worth: bool) -> None:
    """Whether a signal is to wait for `reached`: while there is something to save."""
    self._saving = worth

  def reached(self, step: int) -> int | None:
    """The signal that asks to stop after this step; None to go on. All processes must ask, after every step."""
    if not hosts.several():
      return self._received
    if not multihost_utils.reached_preemption_sync_point(step):
      return None
    if self._active:
      self._asked = 1 if self._received is None else self._asked
      self._received = signal.SIGTERM
      self._watched += (signal.SIGTERM,)
      self._old[signal.SIGTERM] = signal.signal(signal.SIGTERM, _nothing)  # from now on, a second one is ours
    return signal.SIGTERM


def name(number: int) -> str:
  """A signal's name, as the log says it."""
  return signal.Signals(number).name


def status(number: int) -> int:
  """The exit status of a process that a signal asked to stop."""
  return errors.INTERRUPTED if number == signal.SIGINT else errors.PREEMPTED


def _leave(why: str, status: int) -> None:
  errors.print_error(why)
  lock.release_all()
  os._exit(status)


def _nothing(number: int, frame: object) -> None:
  """Python calls this late; the thread has long heard of it."""

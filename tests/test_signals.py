"""Which signals save and end a run, what a second one does, and what outlives a lost terminal."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import quick
from test_faults import write_config

from orthus_jax import errors, lock
from orthus_jax.training import hosts, preemption, terminal
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.metric_writer import read_metrics

NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture(autouse=True)
def default_hangup():
  """As of a process that nobody started under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.fixture
def left(monkeypatch):
  """The exit statuses that this process would have ended with."""
  statuses = []
  monkeypatch.setattr(preemption, "_leave", lambda why, status: statuses.append(status))
  return statuses


def until(done) -> bool:
  end = time.monotonic() + 5
  while not done() and time.monotonic() < end:
    time.sleep(0.01)
  return bool(done())


def send(*numbers: int) -> None:
  for number in numbers:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # two of one kind that wait would be one


def test_a_signal_to_a_process_and_its_group_is_one_request(left):
  with preemption.Signals() as signals:
    signals.saving(True)
    for _ in range(2):  # as timeout(1) does; a pause keeps the kernel from joining them
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.002)
    assert until(lambda: signals.reached(1) == signal.SIGTERM)
    time.sleep(0.1)
    assert not left
    send(signal.SIGTERM)
    assert until(lambda: left == [errors.AT_ONCE])


@pytest.mark.parametrize("number", (*NOTICES, signal.SIGTERM, signal.SIGINT))
def test_a_signal_asks_for_a_checkpoint(left, number, caplog):
  with preemption.Signals() as signals:
    assert signals.reached(1) is None
    signals.saving(True)
    send(number)
    assert until(lambda: signals.reached(2) == number) and not left
  assert preemption.name(number) == number.name
  assert preemption.status(number) == (130 if number == signal.SIGINT else errors.PREEMPTED)


@pytest.mark.parametrize("number", NOTICES)
def test_with_nothing_to_save_a_notice_ends_the_process(left, number):
  with preemption.Signals():
    send(number)
    assert until(lambda: left == [errors.PREEMPTED])


def test_notices_that_come_again_hasten_nothing(left):
  # A shell sends SIGHUP on beside the terminal's own; SLURM sends SIGTERM, a while after the signal that it was asked for.
  with preemption.Signals() as signals:
    signals.saving(True)
    send(signal.SIGUSR1, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    assert signals.reached(3) == signal.SIGUSR1 and not left
    send(signal.SIGTERM)
    assert until(lambda: left == [errors.AT_ONCE])


def test_what_is_ignored_at_the_start_stays_so(left):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
  try:
    with preemption.Signals() as signals:
      signals.saving(True)
      send(signal.SIGHUP)
      time.sleep(0.1)
      assert signals.reached(1) is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
  assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL  # given back


def test_among_several_processes_a_notice_becomes_what_jax_tells_the_others(left, monkeypatch):
  monkeypatch.setattr(hosts, "several", lambda: True)
  told = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
  try:
    with preemption.Signals() as signals:
      signals.saving(True)
      send(signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP)
      assert until(lambda: told == [signal.SIGTERM]) and not left
      monkeypatch.setattr(preemption.multihost_utils, "reached_preemption_sync_point", lambda step: True)
      assert signals.reached(1) == signal.SIGTERM
      send(signal.SIGTERM)  # SLURM's, after its notice
      assert not left
      send(signal.SIGTERM)
      assert until(lambda: left == [errors.AT_ONCE])
  finally:
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", (errno.EPIPE, errno.EIO, errno.ENOSPC))
def test_a_log_that_nobody_reads_is_no_error(number, tmp_path, monkeypatch):
  with (tmp_path / "log").open("w") as file:
    class Gone(io.StringIO):
      def write(self, *_):
        raise OSError(number, "gone")

      flush = write

      def fileno(self):
        return file.fileno()

    monkeypatch.setattr(sys, "stderr", Gone())
    before = terminal.may_be_lost()
    print("said", file=sys.stderr, flush=True)
    sys.stderr.flush()
    assert sys.stderr.fileno() == file.fileno()
    terminal.give_back(before)
    assert sys.stderr is before
    os.write(file.fileno(), b"later")
  assert (tmp_path / "log").read_text() == ("later" if number == errno.ENOSPC else "")  # a disk may have room again


@pytest.mark.slow
def test_a_lost_terminal_saves_and_leaves_nothing_behind(tmp_path):
  config, run = write_config(tmp_path, run__checkpoint_every=0), tmp_path / "run"
  ours, theirs = pty.openpty()
  environment = os.environ | quick.environment() | {"JAX_PLATFORMS": "cpu"}
  command = ["sh", "-c", 'exec "$@" <>"$TTY" >/dev/null 2>&0', "-", sys.executable, "-m", "orthus_jax.cli"]
  # The first terminal that a session opens is its own.
  process = subprocess.Popen(
      [*command, "train", config, f"--workdir={run}"], env=environment | {"TTY": os.ttyname(theirs)}, start_new_session=True
  )
  try:
    end = time.monotonic() + 300
    os.set_blocking(ours, False)
    while not read_metrics(run) and process.poll() is None and time.monotonic() < end:
      try:
        os.read(ours, 1 << 16)
      except BlockingIOError:
        time.sleep(0.05)
    assert (run / lock.NAME).exists()
    os.close(theirs)
    os.close(ours)  # the kernel sends SIGHUP, and nothing can be written any more
    assert process.wait(60) == errors.PREEMPTED
  finally:
    process.kill()
  assert len(checkpoint.steps(run)) == 1 and not (run / lock.NAME).exists()
  assert subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True).stdout == b""  # its session is empty

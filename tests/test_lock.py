"""One command at a time in a directory: what is refused, what a killed process leaves, machines that share no `flock`."""

import errno
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_faults import write_config

from orthus_jax import cli, files, lock, lock_record
from orthus_jax.errors import BadRequest


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lock, "_BEAT", 0.05)
  monkeypatch.setattr(lock, "_PATIENCE", 0.4)


def elsewhere(folder: Path, **changes) -> dict:
  """What a holder on another machine left."""
  record = {"host": "node7", "pid": 4, "since": "then", "command": "orthus train", "machine": "another", "id": "x"} | changes
  path = folder / lock.NAME
  with path.open("r+b" if path.exists() else "xb") as f:  # in place: an empty one, for a moment, would mean released
    f.write(json.dumps(record).encode())
    f.truncate()
  return record


def held_by_a_process(folder: Path) -> subprocess.Popen:
  program = (
      "import sys, time; from pathlib import Path; from orthus_jax import lock\n"
      "with lock.hold(Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(300)"
  )
  process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


def test_a_second_command_is_told_who_is_there(tmp_path):
  with held_by_a_process(tmp_path / "run") as process:
    said = rf"in use: another command works there since 20.* \(process {process.pid} on .*: -c .*wait until it is done"
    with pytest.raises(BadRequest, match=said) as e, lock.hold(tmp_path / "run"):
      pass
    assert "\n" not in str(e.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / lock.NAME).exists()
    with lock.hold(tmp_path / "run"):  # a dead process's never blocks
      assert lock_record.read(tmp_path / "run" / lock.NAME)["pid"] == os.getpid()


def test_nothing_is_left_of_a_lock(tmp_path):
  with lock.hold(tmp_path / "a" / "run"):
    assert (tmp_path / "a" / "run" / lock.NAME).is_file()
    with pytest.raises(BadRequest, match="in use"), lock.hold(tmp_path / "a" / "run"):
      pass
  assert not (tmp_path / "a").exists()
  (tmp_path / "there").mkdir()
  with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "there"):
    (tmp_path / "there" / "written").touch()
    raise ZeroDivisionError
  assert [p.name for p in (tmp_path / "there").iterdir()] == ["written"]
  with lock.hold(tmp_path / "there"):
    lock.release_all()
    assert not (tmp_path / "there" / lock.NAME).exists()


def test_a_place_that_cannot_be_written_to_is_a_bad_request(tmp_path):
  (tmp_path / "file").touch()
  for place in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(BadRequest, match="can't be written to"), lock.hold(place):
      pass


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"\xff", b'{"id": 3}'])
def test_whatever_a_lock_file_holds_it_does_not_block(quick, tmp_path, left):
  (tmp_path / lock.NAME).write_bytes(left)
  with lock.hold(tmp_path):
    assert lock_record.read(tmp_path / lock.NAME)["pid"] == os.getpid()
  assert not (tmp_path / lock.NAME).exists()


def test_another_machines_holder_blocks_while_it_lives(quick, tmp_path, monkeypatch):
  record = elsewhere(tmp_path)
  with lock.hold(tmp_path):  # no sign of life
    pass
  elsewhere(tmp_path)
  monkeypatch.setattr(lock, "_PATIENCE", 10)  # longer than a busy machine keeps the timers waiting
  alive = threading.Timer(0.2, lambda: elsewhere(tmp_path, beat=1))
  alive.start()
  with pytest.raises(BadRequest, match=r"process 4 on node7: orthus train"), lock.hold(tmp_path):
    pass
  assert lock_record.read(tmp_path / lock.NAME) == record | {"beat": 1}  # left alone
  threading.Timer(0.1, (tmp_path / lock.NAME).unlink).start()
  with lock.hold(tmp_path):  # it ended meanwhile
    pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_flock_is_not_to_be_had_signs_of_life_decide(quick, tmp_path, monkeypatch, number):
  def refuse(*_):
    raise OSError(number, "no")

  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  with lock.hold(tmp_path), pytest.raises(BadRequest, match="in use"), lock.hold(tmp_path):
    pass
  elsewhere(tmp_path, machine=lock_record.machine())  # killed
  with lock.hold(tmp_path):
    pass


def test_a_file_server_that_keeps_a_dead_machines_lock_does_not_block(quick, tmp_path):
  process = held_by_a_process(tmp_path)
  try:
    process.send_signal(signal.SIGSTOP)  # no more signs of life
    elsewhere(tmp_path)
    with lock.hold(tmp_path):
      assert lock_record.read(tmp_path / lock.NAME)["pid"] == os.getpid()
  finally:
    process.kill()
    process.communicate()


def test_a_holder_that_was_taken_for_dead_gives_way(quick, tmp_path, monkeypatch, capsys):
  left = threading.Event()
  monkeypatch.setattr(lock.os, "_exit", lambda status: left.set() if status == 2 else None)
  with lock.hold(tmp_path):
    assert not left.wait(0.2)
    elsewhere(tmp_path)
    assert left.wait(5)
  assert "process 4 on node7" in capsys.readouterr().err
  assert lock_record.read(tmp_path / lock.NAME)["host"] == "node7"  # the other's stays


def test_a_beat_changes_the_record_and_nothing_else(quick, tmp_path):
  with lock.hold(tmp_path):
    seen = []
    end = time.monotonic() + 5
    while len(seen) < 3 and time.monotonic() < end:
      now = lock_record.read(tmp_path / lock.NAME)
      assert now, "half a record"
      seen += [now] if now not in seen else []
    assert len(seen) == 3 and len({s["id"] for s in seen}) == 1 and os.stat(tmp_path / lock.NAME).st_size < 4096


def test_commands_that_write_to_a_directory_keep_out_of_anothers(tmp_path, capsys):
  config = write_config(tmp_path)
  for verb, option in (("train", "workdir"), ("prepare", "out")):
    with lock.hold(tmp_path / verb):
      assert cli.main([verb, config, f"--{option}={tmp_path / verb}"]) == 2
      said = capsys.readouterr().err.splitlines()[-1]
      assert said.startswith(f"orthus: {tmp_path / verb} is in use: another command works there since ")
      assert [p.name for p in (tmp_path / verb).iterdir()] == [lock.NAME]
    assert not (tmp_path / verb).exists()
  (tmp_path / "out").mkdir()
  elsewhere(tmp_path / "out", machine=lock_record.machine())  # killed before it wrote anything
  assert cli.main(["prepare", config, f"--out={tmp_path / 'out'}"]) == 0
  assert (tmp_path / "out" / "prepared.json").exists() and not (tmp_path / "out" / lock.NAME).exists()


def test_two_that_write_one_target_do_not_mix(tmp_path):
  with pytest.raises(BadRequest, match="another command made .* meanwhile"), files.staged(tmp_path / "out") as folder:
    (folder / "mine").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["theirs"]
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_command_left_of_a_target_goes_with_the_next_one(tmp_path):
  old, fresh = (tmp_path / f".out [1].unfinished-{name}" for name in ("old", "fresh"))
  for folder, before in ((old, 7200), (fresh, 0)):
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "half").touch()
    for path in (folder / "deep" / "half", folder / "deep", folder):
      os.utime(path, (time.time() - before,) * 2)
  with files.staged(tmp_path / "out [1]") as folder:
    assert not old.exists() and fresh.exists()  # another command may be at this one
    (folder / "mine").touch()
  assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, "out [1]"]

"""The launch scripts, with stand-ins for the commands that they call."""

import os
from pathlib import Path
import signal
import subprocess
import time

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"


def stand_in(folder: Path, name: str, body: str) -> None:
  folder.mkdir(exist_ok=True)
  file = folder / name
  file.write_text(f"#!/usr/bin/env bash\necho \"{name} $*\" >> {folder}/calls\n{body}\n")
  file.chmod(0o755)


def run(script: str, folder: Path, *, workdir: str = "", **environment: str) -> tuple[int, list[str]]:
  env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
  done = subprocess.run(
      [LAUNCH / script, "c.py", workdir or str(folder / "run"), "--config.a=b c"], env=env, cwd=folder, capture_output=True,
      text=True, timeout=60,
  )  # fmt: skip
  return done.returncode, (folder / "calls").read_text().splitlines()


STATUSES = 'echo x >> {0}/n; set -- {1}; n=$(wc -l < {0}/n); exit "${{!n}}"'


@pytest.mark.parametrize("statuses, wanted, times", [
    ("0", 0, 1), ("2", 2, 1), ("75 76 0", 0, 3), ("75 1", 1, 2), ("75 75 75 75", 75, 3), ("130", 130, 1),
])  # fmt: skip
def test_a_machine_starts_again_what_was_preempted(tmp_path, statuses, wanted, times):
  stand_in(tmp_path / "bin", "orthus", STATUSES.format(tmp_path / "bin", statuses))
  status, calls = run("local.sh", tmp_path / "bin", RESTARTS="2")
  assert status == wanted
  assert calls == [f"orthus train --config=c.py --workdir={tmp_path / 'bin' / 'run'} --config.a=b c"] * times
  assert (tmp_path / "bin" / "run" / "log.txt").read_text().count("starting again") == times - 1


def test_a_workdir_in_a_bucket_is_no_folder_here(tmp_path):
  stand_in(tmp_path / "bin", "orthus", STATUSES.format(tmp_path / "bin", "75 0"))
  status, calls = run("local.sh", tmp_path / "bin", workdir="gs://b/x")
  assert status == 0 and calls == ["orthus train --config=c.py --workdir=gs://b/x --config.a=b c"] * 2
  assert sorted(p.name for p in (tmp_path / "bin").iterdir()) == ["calls", "n", "orthus"]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_script_reaches_training_and_ends_both(tmp_path, number, group):
  folder = tmp_path / "bin"
  # Saves for a moment, as training does, unless a second SIGTERM stops it.
  saves = "trap 'n=$((n + 1)); [ $n -lt 2 ] || exit 143' TERM; trap 'sleep 0.3; echo saved >&2; exit 75' USR1"
  saves += "; trap '' HUP USR2"
  stand_in(folder, "orthus", f"{saves}; touch {folder}/up; while true; do sleep 0.05; done")
  env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
  process = subprocess.Popen(
      [LAUNCH / "local.sh", "c.py", str(folder / "run")], env=env, start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
  )  # fmt: skip
  while not (folder / "up").exists():
    time.sleep(0.02)
  if group:  # as a terminal that is lost, or a service manager, sends it
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
  assert process.wait(30) == 75 and len((folder / "calls").read_text().splitlines()) == 1
  end = time.monotonic() + 5
  while "saved" not in (folder / "run" / "log.txt").read_text():
    assert time.monotonic() < end, "the log lacks its last line"
    time.sleep(0.02)


@pytest.mark.parametrize(
    "status, count, requeued", [(0, 0, False), (1, 0, False), (75, 0, True), (76, 3, True), (75, 100, False)]
)
def test_slurm_puts_a_preempted_job_back(tmp_path, status, count, requeued):
  folder = tmp_path / "bin"
  stand_in(folder, "srun", f"exit {status}")
  stand_in(folder, "scontrol", "")
  got, calls = run("slurm.sh", folder, SLURM_JOB_ID="17", SLURM_RESTART_COUNT=str(count))
  assert got == status and ("scontrol requeue 17" in calls) == requeued


@pytest.mark.parametrize("statuses, wanted, times", [("75 76 0", 0, 3), ("1", 1, 1), ("75 75 75", 75, 2)])
def test_a_pod_starts_again_what_was_preempted(tmp_path, statuses, wanted, times):
  folder = tmp_path / "bin"
  stand_in(folder, "orthus", STATUSES.format(folder, statuses))
  stand_in(folder, "gcloud", 'command="${@: -1}"; exec bash -c "${command#--command=}"')
  status, calls = run("tpu_pod.sh", folder, TPU="pod", ZONE="z", RESTARTS="1" if times == 2 else "9")
  trains = [c for c in calls if c.startswith("orthus")]
  assert status == wanted and trains == [
      f"orthus train --config=c.py --workdir={folder / 'run'} --processes=auto --config.a=b c"
  ] * times


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_pod.sh"])
def test_usage(script):
  done = subprocess.run([LAUNCH / script], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("usage: ")

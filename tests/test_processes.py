"""Several processes on one machine: who is missing is said, and together they train what one process trains."""

import json
import os
from pathlib import Path
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import quick
import tiny

from orthus_jax import cli
from orthus_jax.config import to_dict
from orthus_jax.errors import BadRequest
from orthus_jax.parallel import launchers, processes
from orthus_jax.training import goodput, hosts
from orthus_jax.training.checkpoints import workdir as checkpoint


def free_port() -> int:
  with socket.create_server(("", 0)) as s:
    return s.getsockname()[1]


def meet(count: int, ids, timeout: float) -> dict[int, str]:
  """What each of the processes `ids` is told, as threads; "" for being let in."""
  address, said = f"localhost:{free_port()}", {}

  def one(place: int, i: int) -> None:
    try:
      processes.meet(address, count, i, timeout=timeout)
      said[place] = ""
    except BadRequest as e:
      said[place] = str(e)

  threads = [threading.Thread(target=one, args=(k, i)) for k, i in enumerate(ids)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  return said


def test_all_processes_meet():
  assert meet(3, [2, 0, 1], 20) == {0: "", 1: "", 2: ""}


def test_missing_processes_are_named_to_all_that_came():
  begin = time.monotonic()
  said = meet(4, [0, 2], 2)
  assert set(said.values()) == {"processes 1, 3 of 4 didn't join within 2 s: start them all, or raise --join_timeout"}
  assert time.monotonic() - begin < 15


def test_a_missing_first_process_is_named():
  assert "process 0 of 2 didn't listen on localhost:" in meet(2, [1], 1)[0]


def test_processes_that_contradict_each_other_are_refused():
  said = meet(4, [0, 1, 1], 20)
  assert len(set(said.values())) == 1 and "two processes say that they are number 1 of 4" in said[0]


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "3", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_JOB_ID": "3", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_a_cluster_is_seen_in_the_environment(environment, several):
  assert launchers.in_cluster(environment) == several


def test_slurm_says_who_is_who(monkeypatch):
  step = {
      "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9",
      "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "16",
  }  # fmt: skip
  for name, value in step.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
  coordinator, count, number, local = processes._detect(1)
  assert coordinator.startswith("node003:") and (count, number, local) == (16, 9, [1])
  monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x16)")
  assert processes._detect(1)[3] is None  # one process a node takes all its devices


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--processes=2"], "--coordinator and --process_id missing"),
        (["--processes=2", "--process_id=2", "--coordinator=a:1"], "--process_id=2 must lie in 0..1"),
        (["--processes=2", "--process_id=0", "--coordinator=a"], "must be HOST:PORT"),
        (["--processes=many"], "must be a number from 1, or auto"),
        (["--process=2"], "the nearest is --process"),
    ],
)
def test_flags_are_checked(flags, message, capsys, tmp_path):
  config = Path(__file__).parent.parent / "configs" / "shapes.py"
  assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def _config(folder: Path, **more) -> Path:
  data = tiny.write_folder(folder / "pictures", n=12)
  tiny.tokenizer().save(folder)
  tree = to_dict(tiny.config(
      data__path=str(data), data__tokenizer=str(folder), data__cache_features=True, run__report=False, run__steps=3,
      run__batch_size=16, run__checkpoint_every=2, model__transformer__layers=1, optimizer__accumulation=2,
      optimizer__ema_decay=0.9, mesh__fsdp=4, mesh__tensor=2, **more,
  ))  # fmt: skip
  file = folder / "config.py"
  file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")
  return file


def _start(devices: int, *argv: str, **more: str) -> subprocess.Popen:
  environment = os.environ | quick.environment(devices) | {"JAX_PLATFORMS": "cpu"} | more
  command = [sys.executable, "-m", "orthus_jax.cli", "train", *argv]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
  # Packing, accumulation, cached features, an average, checkpoints. The two are told apart as by torchrun, whose agent has
  # the port that it names, and a proxy that isn't there stands between them.
  config = f"--config={_config(tmp_path)}"
  alone = _start(8, config, f"--workdir={tmp_path / 'one'}")
  _, said = alone.communicate(timeout=900)
  assert alone.returncode == 0, said[-3000:]
  torchrun = {
      "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port() - 1),
      "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "no_proxy": "example.org",
      "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
  }  # fmt: skip
  pair = [
      _start(4, config, f"--workdir={tmp_path / 'two'}", "--json", RANK=str(i), LOCAL_RANK=str(i), **torchrun)
      for i in (0, 1)
  ]
  try:
    said = [p.communicate(timeout=900) for p in pair]
  finally:
    for p in pair:
      p.kill()
  assert all(p.returncode == 0 for p in pair), said[0][1][-2000:] + said[1][1][-2000:]
  assert "figures in" in said[0][1] and json.loads(said[0][0])["parameters"] > 0
  assert "figures in" not in said[1][1] and not said[1][0]  # one writes
  assert "proxy" not in said[0][1] + said[1][1]  # jax warns of what is seen to
  assert not (tmp_path / "two" / "lock").exists()

  rows = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
  assert [r["step"] for r in rows[1]] == [1, 2, 3]
  for a, b in zip(*rows):
    for name in ("loss", "text_loss", "image_loss", "grad_norm", "padding"):
      assert b[name] == pytest.approx(a[name], rel=1e-5), name
  # Each process's times reach the one that tells of them.
  assert all(r["straggler"] in (-1, 0, 1) and r["straggler_seconds"] >= 0 for r in rows[1]) and "straggler" not in rows[0][0]
  assert [len(goodput.read(tmp_path / n)[0]["hosts"]) for n in ("one", "two")] == [1, 2]
  one, two = (checkpoint.load_params(tmp_path / n, average=False) for n in ("one", "two"))
  assert one.keys() == two.keys()
  for name in one:
    np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_process_that_never_joins_is_named(tmp_path):
  begin = time.monotonic()
  lonely = _start(
      1, f"--config={_config(tmp_path)}", f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{free_port()}",
      "--processes=2", "--process_id=0", "--join_timeout=1",
  )  # fmt: skip
  out, err = lonely.communicate(timeout=300)
  assert lonely.returncode == 2
  assert err == "orthus: process 1 of 2 didn't join within 1 s: start them all, or raise --join_timeout\n"
  assert not (tmp_path / "run").exists() and time.monotonic() - begin < 120


def test_one_process_needs_no_others():
  with hosts.together():
    pass
  with pytest.raises(BadRequest, match="mine"), hosts.together():
    raise BadRequest("mine")
  assert hosts.first_alone(lambda: 3) == 3
  values = np.arange(6.0).reshape(3, 2)
  np.testing.assert_array_equal(np.concatenate(list(hosts.pieces(values))), values)

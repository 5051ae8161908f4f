"""`orthus sweep` carries its runs out, whatever becomes of them; a stand-in takes the place of training where that is slow."""

import csv
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest
import quick
from test_faults import write_config
from test_report import Page

from orthus_jax import cli, lock, lock_record
from orthus_jax.commands import benchmark, evaluate, generate
from orthus_jax.config import to_dict
from orthus_jax.config.command_line import load_config
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.runs import scoring
from orthus_jax.sweeping import child, machine, table

# Trains nothing, in a moment, and leaves what training leaves.
STAND_IN = """
import ast, json, os, pathlib, signal, sys, time
verb, *argv = sys.argv[1:]
with open(os.environ["CALLS"], "a") as f:
  f.write(json.dumps([verb, *argv]) + chr(10))
if verb == "evaluate":
  out = pathlib.Path(argv[-1].removeprefix("--out="))
  out.mkdir(parents=True)
  points = any(a.startswith("--benchmark=") for a in argv)
  scores = {"mme": 1250.5} if points else {"edits": 0.9}
  told = {"scores": scores, "intervals": {}, "counts": {name: 10 for name in scores}}
  (out / ("score.json" if points else "evaluation.json")).write_text(json.dumps(told))
  sys.exit()
if verb == "generate":
  if "bad" in argv[0]:
    sys.exit("orthus: this model draws nothing")
  requests, out = (pathlib.Path(a.partition("=")[2]) for a in argv[1:3])
  out.mkdir(parents=True)
  (out / "a.png").write_bytes(b"a picture")
  with open(out / "results.jsonl", "w") as f:
    for line in requests.read_text().splitlines():
      f.write(json.dumps({"id": json.loads(line)["id"], "response": [{"image": "a.png"}]}) + chr(10))
  sys.exit()
config = json.loads(pathlib.Path(__file__).with_name("base.json").read_text())
flags = dict(a.split("=", 1) for a in argv)
for name, value in flags.items():
  if name.startswith("--config."):
    _, section, field = name.split(".")
    config[section][field] = value if field == "path" else ast.literal_eval(value)
workdir = pathlib.Path(flags["--workdir"])
workdir.mkdir(exist_ok=True)
(workdir / "config.json").write_text(json.dumps(config))
steps, seed, rate = config["run"]["steps"], config["run"]["seed"], config["optimizer"]["learning_rate"]
def save(step):
  (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
if os.environ.get("DIES", "none") in workdir.name:
  print("Traceback: much", file=sys.stderr)
  sys.exit("orthus: the picture a.png is broken")
if os.environ.get("WAITS", "none") in workdir.name:
  signal.signal(signal.SIGUSR1, lambda *_: (save(2), os._exit(75)))
  pathlib.Path(os.environ["CALLS"] + ".waiting").touch()
  time.sleep(60)
with open(workdir / "metrics.jsonl", "w") as f:
  for step in range(1, steps + 1):
    f.write(json.dumps({"step": step, "loss": rate * 100 + seed + 1 / step}) + chr(10))
save(steps)
(workdir / "report.json").write_text(json.dumps({
    "params_digest": f"{seed}{rate}", "trained_steps": steps, "parameters": 7,
    "scores": {"edits": 0.5 + seed / 10, "psnr": 20.5}, "counts": {"edits": 10},
    "seconds": {"train": 2.0 * steps, "total": 3.0 * steps},
}))
"""


PARSERS = {"generate": generate.parser, "evaluate": evaluate.parser}


class Sweep:
  """`orthus sweep` over a config file, with the stand-in."""

  def __init__(self, folder: Path, monkeypatch):
    self.config = write_config(folder, run__steps=4)
    self.folder, self.calls_file = folder / "sweep", folder / "calls"
    self._monkeypatch = monkeypatch
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "base.json").write_text(json.dumps(to_dict(load_config(self.config.partition("=")[2]))))
    monkeypatch.setattr(child, "ORTHUS", (sys.executable, str(folder / "stand_in.py")))
    monkeypatch.setenv("CALLS", str(self.calls_file))

  def __call__(self, *more: str, grid: str = "run.seed=0,1", **environment: str) -> int:
    self.calls_file.unlink(missing_ok=True)
    with self._monkeypatch.context() as m:
      for name, value in environment.items():
        m.setenv(name, value)
      grids = [f"--grid={g}" for g in grid.split(" ")]
      return cli.main(["sweep", self.config, f"--workdir={self.folder}", *grids, *more])

  @property
  def calls(self) -> list[str]:
    """(verb, run) of each command that was started."""
    lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
    told = []
    for verb, *argv in map(json.loads, lines):
      if verb in PARSERS:
        PARSERS[verb]().parse_args(argv)  # the command takes what it was given
      place = argv[0] if verb != "train" else next(a for a in argv if a.startswith("--workdir"))
      told.append(f"{verb} {place.rpartition('/')[2]}")
    return sorted(told)

  def table(self) -> dict:
    return json.loads((self.folder / "table.json").read_text())


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  return Sweep(tmp_path, monkeypatch)


def test_what_died_is_told_and_started_again_and_nothing_runs_twice(sweep, capsys):
  assert sweep("--jobs=2", DIES="seed=1", grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 1
  said = capsys.readouterr().err
  assert "orthus: optimizer.learning_rate=0.03,seed=1 failed: the picture a.png is broken" in said
  assert "2 of 4 runs failed; their logs are in" in said and "Traceback" not in said
  assert [r["state"] for r in sweep.table()["runs"]] == ["finished", "finished", "failed", "failed"]
  page = Page((sweep.folder / "index.html").read_text())
  assert "the picture a.png is broken" in page.words

  assert sweep("--collect", grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 1 and not sweep.calls
  said = capsys.readouterr()
  assert "2 of 4 runs finished" in said.out and "the same command without --collect starts them again" in said.err
  assert "orthus: optimizer.learning_rate=0.03,seed=1 failed: the picture a.png is broken" in said.err

  assert sweep("--dry-run", grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 0
  listed = capsys.readouterr().out
  assert "failed                 about 12.0 s       optimizer.learning_rate=0.01,seed=1" in listed
  assert "4 runs: 2 finished, 2 failed; time left: about 24.0 s with --jobs=1" in listed and not sweep.calls

  assert sweep(grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 0
  assert sweep.calls == [f"train optimizer.learning_rate={rate},seed=1" for rate in (0.01, 0.03)]
  assert sweep(grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 0 and not sweep.calls
  assert "4 of 4 runs finished" in capsys.readouterr().out

  # Another seed joins, and leaves; nothing else is run.
  assert sweep("--pictures=0", grid="run.seed=0,1,2 optimizer.learning_rate=0.01,0.03") == 0
  assert sweep.calls == [f"train optimizer.learning_rate={rate},seed=2" for rate in (0.01, 0.03)]
  assert sweep("--dry-run", grid="run.seed=0,1 optimizer.learning_rate=0.01,0.03") == 0
  assert "left alone: 2 runs" in capsys.readouterr().err


def test_the_table_has_all_of_it(sweep, capsys):
  assert sweep("--json", grid="run.seed=0,1,2 optimizer.learning_rate=0.01,0.03") == 0
  told = json.loads(capsys.readouterr().out)
  assert told == sweep.table() and len(told["runs"]) == 6
  first = told["groups"][0]
  assert first["group"] == "optimizer.learning_rate=0.01" and first["seeds"] == [0, 1, 2]
  assert first["fields"] == {"optimizer.learning_rate": 0.01}
  edits = first["scores"]["edits"]
  assert edits["mean"] == pytest.approx(0.6) and edits["n"] == 3
  assert edits["high"] - edits["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5)  # Student's, for two degrees of freedom
  assert first["losses"]["loss"]["mean"] == pytest.approx(1 + 1 + 0.25)
  assert first["costs"]["seconds_a_step"]["mean"] == 2.0
  lines = list(csv.DictReader((sweep.folder / "table.csv").read_text().splitlines()))
  assert [line["optimizer.learning_rate"] for line in lines][:2] == ["0.01", "0.03"]
  assert lines[0]["edits"] == "0.5" and lines[0]["state"] == "finished" and lines[0]["params_digest"] == "00.01"
  page = (sweep.folder / "index.html").read_text()
  assert page.count("<svg") == 1 and "Edits carried out" in page and "60.0 ± 24.8" in page and "20.5 ± 0" in page
  assert page.count("data:image/png") == 6  # three colours of boxes, for each group
  assert set(told["pictures"]["optimizer.learning_rate=0.01"]) == {"000", "001", "002"}


def test_groups_that_cant_draw_are_asked_once(sweep, tmp_path):
  requests = tmp_path / "requests.jsonl"
  requests.write_text('{"id": "x", "prompt": "a box"}\n\n{"prompt": "a <image> lid", "images": ["pictures/1.png"]}\n')
  bad = f"--config.data.path={tmp_path / 'pictures'}"
  for first in (True, False):
    assert sweep(bad, f"--prompts={requests}", grid="data.text=('bad',),('text',)") == 0
    verbs = [c.partition(" ")[0] for c in sweep.calls]
    assert verbs == (["generate", "generate", "train", "train"] if first else [])
  page = (sweep.folder / "index.html").read_text()
  assert "this model draws nothing" in page and page.count("data:image/png") == 2 and "a &lt;image&gt; lid" in page
  _, second = (sweep.folder / "requests.jsonl").read_text().splitlines()
  assert json.loads(second) == {"id": "line-3", "prompt": "a <image> lid", "images": [f"{tmp_path}/pictures/1.png"]}


def test_runs_are_evaluated_where_asked_and_once_for_each_way(sweep, capsys):
  assert sweep("--pictures=0") == 0 and sweep.calls == ["train seed=0", "train seed=1"]
  for _ in range(2):
    assert sweep("--pictures=0", "--evaluate=--quick --samples=2") == 0
  assert not sweep.calls and [r["scores"] for r in sweep.table()["runs"]] == [{"edits": 0.9}] * 2
  assert sweep("--pictures=0", "--evaluate=--quick --samples=3") == 0
  assert sweep.calls == ["evaluate seed=0", "evaluate seed=1"]
  assert cli.main(["sweep", sweep.config, f"--workdir={sweep.folder}", "--grid=run.seed=0", "--evaluate=--sample=x"]) == 2
  assert "--evaluate='--sample=x': " in capsys.readouterr().err


def test_runs_are_evaluated_by_published_benchmarks(sweep, capsys):
  for _ in range(2):
    assert sweep("--pictures=0", "--evaluate=--benchmark=mme --data=somewhere") == 0
  assert not sweep.calls  # finished, each
  assert [(r["state"], r["scores"]) for r in sweep.table()["runs"]] == [("finished", {"mme": 1250.5})] * 2
  assert set(benchmark.JUDGED) == set(scoring.ELSEWHERE)
  assert "1.25k" in (sweep.folder / "index.html").read_text()  # points, not hundredths
  for wrong, told in (
      ("--benchmark=mme", "needs --data=DIR"), ("--benchmark=wise --data=d", "judged elsewhere"),
      ("--benchmark=geneval --data=d", "judged elsewhere"), ("--benchmark=mme --data=d --stories=3", "--stories is for"),
  ):  # fmt: skip
    assert sweep(f"--evaluate={wrong}") == 2
    assert told in capsys.readouterr().err and not sweep.calls


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_has_runs_saved_and_the_next_call_goes_on(sweep, tmp_path, capsys, number, status):
  def ask():
    while not (tmp_path / "calls.waiting").exists():
      time.sleep(0.02)
    time.sleep(0.1)
    os.kill(os.getpid(), number)

  threading.Thread(target=ask).start()
  assert sweep(WAITS="seed=0", grid="run.seed=0,1") == status
  said = capsys.readouterr().err
  assert f"{number.name}: the runs under way are saved" in said and "stopped with 0 of 2 runs finished" in said
  assert sweep.calls == ["train seed=0"]
  assert sweep("--dry-run") == 0
  assert "half, 2 of 4           unknown            seed=0" in capsys.readouterr().out
  assert sweep() == 0 and [r["state"] for r in sweep.table()["runs"]] == ["finished"] * 2


def test_a_config_that_changed_is_refused(sweep, capsys):
  assert sweep("--pictures=0") == 0
  assert sweep("--config.run.batch_size=4") == 2
  said = capsys.readouterr().err
  assert "seed=0 was begun with another config: run.batch_size is 8 there, 4 here; choose another --workdir" in said
  assert sweep("--config.sampling.guidance=1.5", "--dry-run") == 2  # its pictures and scores would be others
  assert sweep("--config.run.log_every=5", "--pictures=0") == 0 and not sweep.calls  # which changes no result


def test_a_file_that_changes_meanwhile_starts_nothing_else(sweep, tmp_path, capsys):
  file = Path(sweep.config.partition("=")[2])
  # As an editor would, while the first run is trained.
  (tmp_path / "stand_in.py").write_text(f"""{STAND_IN}
pathlib.Path({str(file)!r}).write_text(pathlib.Path({str(file)!r}).read_text().replace("'batch_size': 8", "'batch_size': 4"))
""")
  assert sweep("--pictures=0") == 1 and sweep.calls == ["train seed=0"]
  said = capsys.readouterr().err
  assert "seed=1 failed: " in said and "has changed since the sweep began (run.batch_size 8 -> 4)" in said
  assert [r["state"] for r in sweep.table()["runs"]] == ["finished", "failed"]


@pytest.mark.parametrize("argv, said", [
    (("--jobs=0",), "--jobs: 0 must be at least 1"),
    (("--grid=run.seed=",), "an empty grid: run.seed has no values"),
    (("--grid=run.seed",), "--grid run.seed: write FIELD=V1,V2"),
    (("--grid=run.sed=1",), "unknown field --config.run.sed; the nearest is --config.run.seed"),
    (("--grid=run.seed=1,1",), "two runs are the same, both seed=1"),
    (("--grid=run.seed=1", "--grid=run.seed=2"), "--grid says twice what run.seed is"),
    (("--grid=run.steps=1,0",), "run.steps=0 must be at least 1"),
    (("--config.run.seed=5", "--grid", "run.seed=0,1"), "--config.run.seed is given for all runs, and the sweep varies it"),
    (("--draw=run.seed=integer(1,9)",), "--draw and --draws go together"),
    (("--draws=2", *["--draw=run.seed=integer(1,9)"] * 2, "--dry-run"), "--draw says twice how run.seed is drawn"),
    (("--grid=run.seed=1", "--draws-seed=1", "--dry-run"), "--draws-seed is of --draw: leave it out"),
    (("--grid=run.seed=1", "--print=slurm", "--json"), "--print prints a script: leave --json out"),
    (("--draws=2", "--draw=run.seed=normal(1,9)"), "write uniform(LOW,HIGH)"),
    (("--draws=2", "--draw=run.seed=integer(1)"), "integer takes two numbers"),
    ((), "has no get_sweep"),
    (("--grid=run.seed=1", "--out=x"), "--out is of --print"),
    (("--grid=run.seed=1", "--prompts=nowhere"), "--prompts=nowhere can't be read: "),
    (("--grid=run.seed=1", f"--prompts={__file__}"), "can't be read: Extra data"),
    (("--grid=run.seed=1", "--what"), "unrecognized arguments: --what"),
])  # fmt: skip
def test_bad_requests_are_told_in_a_line_and_leave_nothing(tmp_path, capsys, argv, said):
  config, folder = write_config(tmp_path), tmp_path / "sweep"
  assert cli.main(["sweep", config, f"--workdir={folder}", *argv]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1 and not folder.exists()


def test_a_directory_that_is_no_sweeps_is_refused(sweep, tmp_path, capsys):
  sweep.folder.mkdir()
  (sweep.folder / "config.json").write_text("{}")
  assert sweep() == 2 and "is one run's workdir, and no sweep" in capsys.readouterr().err
  (sweep.folder / "config.json").rename(sweep.folder / "notes")
  assert sweep("--dry-run") == 2 and "holds other things (notes), and no sweep" in capsys.readouterr().err
  assert [p.name for p in sweep.folder.iterdir()] == ["notes"]


def test_two_sweeps_dont_run_the_same(sweep, capsys):
  assert sweep("--pictures=0") == 0
  with lock.hold(sweep.folder / "runs" / "seed=2"):
    assert sweep("--pictures=0", grid="run.seed=0,1,2") == 75 and not sweep.calls
    assert "1 runs are under way elsewhere" in capsys.readouterr().err
  with lock.hold(sweep.folder):
    assert sweep() == 2 and "is in use" in capsys.readouterr().err


# --- clusters -------------------------------------------------------------------------------------------------------


def test_a_slurm_array_does_what_is_left(sweep, tmp_path, capsys):
  assert sweep("--pictures=0", grid="run.seed=0") == 0
  script = tmp_path / "array.sh"
  assert sweep("--print=slurm", f"--out={script}", "--jobs=3", "--evaluate=--quick", grid="run.seed=0,1,2") == 0
  assert not sweep.calls and "#SBATCH --array=0-2%3\n" in script.read_text()
  folder = tmp_path / "bin"
  folder.mkdir()
  for name, body in (("srun", f'echo "$*" >> {folder}/calls; exit ${{STATUS:-0}}'), ("scontrol", f"echo $* >> {folder}/calls")):
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)

  def task(number: int, **more: str) -> tuple[int, list[str]]:
    (folder / "calls").write_text("")
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_ID": "9"}
    env = os.environ | own | more
    return subprocess.run(["bash", script], env=env, timeout=30).returncode, (folder / "calls").read_text().splitlines()

  place = f"{sweep.folder}/runs/seed"
  status, (evaluate,) = task(0)
  assert status == 0 and evaluate.startswith(f"--nodes=1 --ntasks=1 orthus evaluate {place}=0 --quick --out={place}=0/")
  status, (train, evaluate) = task(2)
  assert train == f"--kill-on-bad-exit=1 orthus train {sweep.config} --config.run.seed=2 --workdir={place}=2"
  assert status == 0 and f"evaluate {place}=2" in evaluate
  assert task(1, STATUS="75") == (75, [train.replace("seed=2", "seed=1"), "requeue 9"])
  assert task(1, STATUS="3") == (3, [train.replace("seed=2", "seed=1")])
  assert task(7)[0] == 2


def test_each_tpu_takes_a_run_after_the_other(sweep, tmp_path, capsys):
  assert sweep("--collect") == 2 and "nothing to collect" in capsys.readouterr().err
  assert sweep("--print=tpu", grid="run.seed=0,1,2") == 0
  script = capsys.readouterr().out
  (tmp_path / "launch").mkdir()
  stand_in = tmp_path / "launch" / "tpu_pod.sh"
  stand_in.write_text('#!/usr/bin/env bash\necho "$TPU $2 $3" >> calls\n[ "$3" != "--config.run.seed=1" ]\n')
  stand_in.chmod(0o755)
  done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | {"TPUS": "a b"}, capture_output=True, text=True)
  assert done.returncode == 1 and "run 1 failed on b" in done.stderr
  place = f"{sweep.folder}/runs/seed"
  wanted = [f"a {place}=0 --config.run.seed=0", f"a {place}=2 --config.run.seed=2", f"b {place}=1 --config.run.seed=1"]
  assert sorted((tmp_path / "calls").read_text().splitlines()) == wanted
  assert subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True).returncode != 0
  # What the jobs leave is a sweep's.
  assert sweep("--collect", grid="run.seed=0,1,2") == 0 and [r["state"] for r in sweep.table()["runs"]] == ["missing"] * 3


# --- parts ----------------------------------------------------------------------------------------------------------


def test_the_machine_is_shared_out(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
  assert [s.cores for s in machine.shares(2, {"JAX_PLATFORMS": "cpu"})] == [(0, 1), (2, 3, 4)]
  assert [s.cores for s in machine.shares(7, {"JAX_PLATFORMS": "cpu"})][4:] == [(4,), (0,), (1,)]
  gpus = {"CUDA_VISIBLE_DEVICES": "2,3,5,7"}
  assert [s.environment for s in machine.shares(2, gpus)] == [{"CUDA_VISIBLE_DEVICES": "2,3"}, {"CUDA_VISIBLE_DEVICES": "5,7"}]
  assert machine.shares(1, gpus)[0].environment == {} == machine.shares(9, gpus | {"JAX_PLATFORMS": "cpu"})[0].environment
  with pytest.raises(BadRequest, match="--jobs=5: there are 4 GPUs here"):
    machine.shares(5, gpus)


@pytest.mark.parametrize("said, status, wanted", [
    ("a\nTraceback\northus: no room\nmore\n", 1, "no room"),
    ("training 3/9 |##|\rtraining 4/9 |###|\nValueError: x\n\n", 1, "ValueError: x"),
    ("", 1, "it said nothing"),
    ("orthus: fine", -9, "killed by SIGKILL, as where memory runs out"),
    ("", -11, "killed by SIGSEGV"),
])  # fmt: skip
def test_the_last_words_of_a_run(said, status, wanted):
  assert child.why(said, status) == wanted


def test_intervals_of_means():
  assert table.interval([3.0]) == {"mean": 3.0, "low": None, "high": None, "n": 1}
  assert table.interval([1.0, 1.0, 1.0])["low"] == 1.0
  two = table.interval([1.0, 3.0])
  assert (two["low"], two["high"]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)


# --- in earnest -----------------------------------------------------------------------------------------------------

SWEEP = """
from orthus_jax import sweep

base = get_config

def get_config(arg=""):
  return base()

def get_sweep(arg=""):
  runs = [sweep.Run("good"), sweep.Run("bad", overrides={"data.path": "gone"})]
  return sweep.product(runs[:1] if arg == "good" else runs, sweep.grid({"run.seed": [0, 1]}))
"""


@pytest.mark.slow
def test_a_sweep_outlives_a_run_that_is_killed_and_others_that_cant_begin(tmp_path):
  config = write_config(tmp_path, run__steps=160, run__checkpoint_every=40, run__log_every=10)
  with Path(config.partition("=")[2]).open("a") as file:
    file.write(SWEEP)
  folder, killed = tmp_path / "sweep", tmp_path / "sweep" / "runs" / "good,seed=1"

  def start(*more: str) -> subprocess.Popen:
    environment = os.environ | quick.environment() | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "orthus_jax.cli", "sweep", config, f"--workdir={folder}", "--jobs=2", *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  def runs() -> dict[str, dict]:
    return {r["id"]: r for r in json.loads((folder / "table.json").read_text())["runs"]}

  process = start("--pictures=0")
  while process.poll() is None and not (killed / "checkpoints" / "40" / "manifest.json").exists():
    time.sleep(0.02)
  os.kill(lock_record.read(killed / "lock")["pid"], signal.SIGKILL)
  said = process.communicate(timeout=300)[1]
  assert process.returncode == 1 and "good,seed=1 failed: killed by SIGKILL" in said and "3 of 4 runs failed" in said
  assert {i: r["state"] for i, r in runs().items()} == {
      "good,seed=0": "finished", "good,seed=1": "failed", "bad,seed=0": "failed", "bad,seed=1": "failed",
  }  # fmt: skip
  assert "gone" in runs()["bad,seed=0"]["error"] and 40 <= runs()["good,seed=1"]["step"] < 160
  first = (folder / "runs" / "good,seed=0" / "report.json").stat().st_mtime_ns

  config += ":good"
  process = start("--pictures=0")
  said = process.communicate(timeout=300)[1]
  assert process.returncode == 0 and "good,seed=0" not in said, said
  assert {i: r["state"] for i, r in runs().items()} == {"good,seed=0": "finished", "good,seed=1": "finished"}
  assert (folder / "runs" / "good,seed=0" / "report.json").stat().st_mtime_ns == first
  assert json.loads((killed / "report.json").read_text())["trained_steps"] <= 120
  assert (folder / "index.html").read_text().count("<svg") >= 3

"""Where metrics go beside the workdir: services that are there, away, slow or not installed."""

import errno
import json
import logging
import sys
import threading
import time
import types

import numpy as np
import pytest

from orthus_jax.errors import BadRequest
from orthus_jax.training.loggers import background, registry
from orthus_jax.training.loggers.background import Background
from orthus_jax.training.metric_writer import MetricWriter, read_metrics

CONFIG = {"run": {"steps": 4, "seed": 0}, "task": "orthus"}


class Service:
  """A logger that fails the first `failures` calls, and may hang."""

  def __init__(self, failures: int = 0, hangs: bool = False):
    self.calls: list = []
    self.failures, self.hangs = failures, hangs
    self.closed = False

  def _take(self, *call):
    if self.hangs:
      threading.Event().wait()
    if self.failures:
      self.failures -= 1
      raise ConnectionRefusedError("[Errno 111] Connection refused\nand a page more")
    self.calls.append(call)

  def scalars(self, step, values):
    self._take(step, values)

  def image(self, step, name, pixels):
    self._take(step, name, pixels.shape)

  def text(self, step, name, text):
    self._take(step, name, text)

  def close(self):
    self.closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(background, "_PAUSES", (0.01, 0.02))
  monkeypatch.setattr(background, "_LAST", 5.0)
  logging.getLogger("orthus_jax").propagate = True


def test_names_are_checked_and_a_wrong_one_is_told_its_nearest():
  registry.check(("tensorboard", "wandb", "mlflow"))
  registry.check(())
  with pytest.raises(BadRequest, match="run.loggers: there is no 'wanb'; the nearest is 'wandb'"):
    registry.check(("tensorboard", "wanb"))
  with pytest.raises(BadRequest, match="has 'mlflow' twice"):
    registry.check(("mlflow", "mlflow"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch, caplog, name):
  monkeypatch.setattr(registry.importlib.util, "find_spec", lambda library: None if library == name else True)
  writer = MetricWriter(tmp_path, loggers=("tensorboard", name))
  writer.scalars(1, {"loss": 2.0})
  writer.close()
  assert [r.getMessage() for r in caplog.records] == [
      f"{name} isn't installed, and gets nothing of this run: pip install 'orthus_jax[{name}]'"
  ]
  assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}] and list((tmp_path / "tensorboard").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboardX's own thread
def test_a_full_disk_holds_no_step_up(tmp_path, monkeypatch, caplog):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
  monkeypatch.setattr(background, "_LAST", 0.2)
  writer = MetricWriter(tmp_path)
  writer._lines = open("/dev/full", "a")
  done = threading.Event()

  def run():
    for step in range(100):
      writer.scalars(step, {"loss": 1.0})
    writer.close()
    done.set()

  threading.Thread(target=run, daemon=True).start()
  assert done.wait(20)
  assert "the metrics of step 99 are lost" in caplog.text and "records weren't taken" in caplog.text


def test_all_that_a_run_says_arrives_in_its_order(caplog):
  service = Service()
  logger = Background("it", lambda: service)
  values = {"loss": 1.0}
  logger.scalars(1, values)
  values["loss"] = 2.0  # which is another record's
  logger.image(1, "drawn", np.zeros((2, 3, 3), np.uint8))
  logger.text(1, "answers", "a box")
  logger.close()
  assert service.calls == [(1, {"loss": 1.0}), (1, "drawn", (2, 3, 3)), (1, "answers", "a box")]
  assert service.closed and not caplog.text


def test_a_service_that_is_away_for_a_while_loses_nothing(caplog):
  service, opened = Service(failures=3), []

  def open_logger():
    opened.append(1)
    if len(opened) < 3:
      raise OSError("no route")
    return service

  logger = Background("it", open_logger)
  for step in range(5):
    logger.scalars(step, {})
  deadline = time.monotonic() + 20
  while len(service.calls) < 5 and time.monotonic() < deadline:
    time.sleep(0.01)
  logger.close()
  assert [c[0] for c in service.calls] == [0, 1, 2, 3, 4] and len(opened) == 3
  assert [r.getMessage() for r in caplog.records] == ["it: no route; the run goes on, and what isn't taken is counted"]


@pytest.mark.parametrize("what", ["opening", "sending"])
def test_a_service_that_hangs_costs_a_step_nothing_and_what_it_did_not_take_is_counted(monkeypatch, caplog, what):
  monkeypatch.setattr(background, "_LAST", 0.2)
  hangs = Service(hangs=True)
  logger = Background("it", threading.Event().wait if what == "opening" else lambda: hangs)
  begin = time.monotonic()
  for step in range(3 * background._HELD):
    logger.scalars(step, {"loss": 1.0})
  gone = time.monotonic() - begin
  logger.close()
  assert gone < 10 and time.monotonic() - begin < 15  # and not for ever
  assert caplog.records[-1].getMessage() == "it: 3000 of 3000 records weren't taken; metrics.jsonl has all numbers"


def test_a_service_that_stays_down_is_one_line_and_a_count(monkeypatch, caplog):
  monkeypatch.setattr(background, "_PATIENCE", 0.0)  # of ten minutes: one record isn't tried for ever
  service = Service(failures=2)
  logger = Background("it", lambda: service)
  for step in range(5):
    logger.scalars(step, {})
  logger.close()
  assert [c[0] for c in service.calls] == [2, 3, 4]
  assert [r.getMessage() for r in caplog.records] == [
      "it: [Errno 111] Connection refused; the run goes on, and what isn't taken is counted",
      "it: 2 of 5 records weren't taken; metrics.jsonl has all numbers",
  ]


# --- the libraries' own calls ---------------------------------------------------------------------------------------


class FakeWandb(types.ModuleType):
  """What of wandb is called, with its signatures."""

  def __init__(self, *, key=True, refuses=False):
    super().__init__("wandb")
    self.__spec__ = types.SimpleNamespace(name="wandb")
    self.key, self.refuses = key, refuses
    self.inits: list[dict] = []
    self.logged: list = []
    self.torn_down = self.finished = 0
    self.Image, self.Html = (lambda pixels: ("image", pixels.shape)), (lambda text: ("html", text))

  def login(self, *, prompt=True):
    assert prompt is False
    return self.key

  def Settings(self, *, init_timeout, finish_timeout, console):
    return {"console": console}

  def teardown(self):
    self.torn_down += 1

  def init(self, *, project, name, id, dir, config, settings, resume=None, mode=None):
    self.inits.append({"project": project, "id": id, "resume": resume, "mode": mode, "config": config})
    if self.refuses and mode != "offline":
      raise ConnectionError("connection refused")
    return self

  def log(self, values, step):
    self.logged.append((step, values))

  def finish(self):
    self.finished += 1


def told(tmp_path, monkeypatch, name, module, start=0):
  """A short run's words to a library."""
  monkeypatch.setattr(registry.importlib.util, "find_spec", lambda library: True)
  for full, found in {name: module, **getattr(module, "parts", {})}.items():
    monkeypatch.setitem(sys.modules, full, found)
  writer = MetricWriter(tmp_path, start=start, loggers=(name,), config=CONFIG)
  writer.scalars(start + 1, {"loss": 2.0, "bad": float("nan")})
  writer.image(start + 1, "drawn", np.zeros((2, 3, 3), np.uint8))
  writer.text(start + 1, "answers", "<a> box")
  writer.evaluation(start + 1, {"evaluate/shapes/yes": 0.5})
  writer.close()
  return module


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch, caplog):
  monkeypatch.delenv("WANDB_MODE", raising=False)
  monkeypatch.setenv("WANDB_SILENT", "true")
  first = told(tmp_path, monkeypatch, "wandb", FakeWandb())
  assert first.inits == [{"project": "orthus", "id": first.inits[0]["id"], "resume": None, "mode": None, "config": CONFIG}]
  assert [step for step, _ in first.logged] == [1, 1, 1, 1] and first.logged[0][1]["loss"] == 2.0
  assert first.logged[1:] == [
      (1, {"drawn": ("image", (2, 3, 3))}), (1, {"answers": ("html", "<pre>&lt;a&gt; box</pre>")}),
      (1, {"evaluate/shapes/yes": 0.5}),
  ]  # fmt: skip
  assert first.finished == 1 and not caplog.text and not (tmp_path / "tensorboard").exists()
  second = told(tmp_path, monkeypatch, "wandb", FakeWandb(), start=1)
  assert second.inits[0]["id"] == first.inits[0]["id"] and second.inits[0]["resume"] == "allow"
  assert json.loads((tmp_path / "loggers" / "wandb.json").read_text()) == {"id": first.inits[0]["id"]}


@pytest.mark.parametrize("fake, said", [({"refuses": True}, "connection refused"), ({"key": False}, "there is no key here")])
def test_wandb_without_server_or_key_is_kept_in_the_workdir(tmp_path, monkeypatch, caplog, fake, said):
  monkeypatch.delenv("WANDB_MODE", raising=False)
  module = told(tmp_path, monkeypatch, "wandb", FakeWandb(**fake))
  assert module.inits[-1]["mode"] == "offline" and len(module.logged) == 4 and module.torn_down == ("refuses" in fake)
  (line,) = [r.getMessage() for r in caplog.records]
  assert said in line and "for `wandb sync`" in line


class FakeMlflow(types.ModuleType):
  """What of mlflow is called: one store, whatever the address."""

  def __init__(self):
    super().__init__("mlflow")
    self.runs: dict[str, list] = {}
    self.address = ""
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: ("metric", key, value, step)
    entities.Param = lambda key, value: ("param", key, value)
    self.parts = {"mlflow.entities": entities}

  def MlflowClient(self, address):
    self.address = address
    return self

  def get_experiment_by_name(self, name):
    return None

  def create_experiment(self, name, artifact_location=None):
    return "7"

  def create_run(self, experiment_id, run_name):
    run = f"run{len(self.runs)}"
    self.runs[run] = []
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

  def update_run(self, run_id, status):
    self.runs[run_id].append(status)

  set_terminated = update_run

  def log_batch(self, run_id, metrics=(), params=()):
    self.runs[run_id] += [*metrics, *params]

  def log_image(self, run_id, image, *, key, step):
    self.runs[run_id].append((key, image.shape, step))

  def log_text(self, run_id, text, file):
    self.runs[run_id].append((text, file))


def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch, caplog):
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
  fake = told(tmp_path, monkeypatch, "mlflow", FakeMlflow())
  assert fake.address == f"sqlite:///{tmp_path}/mlflow.db"
  params = [("param", "run.steps", "4"), ("param", "run.seed", "0"), ("param", "task", "orthus")]
  once = [("drawn", (2, 3, 3), 1), ("<a> box", "answers/000001.txt"), ("metric", "evaluate/shapes/yes", 0.5, 1), "FINISHED"]
  assert fake.runs == {"run0": [*params, ("metric", "loss", 2.0, 1), *once]}
  told(tmp_path, monkeypatch, "mlflow", fake, start=1)
  assert list(fake.runs) == ["run0"] and fake.runs["run0"][8:10] == ["RUNNING", ("metric", "loss", 2.0, 2)]
  assert not caplog.text
  asked = tmp_path / "what?"  # an address ends there
  asked.mkdir()
  assert not told(asked, monkeypatch, "mlflow", FakeMlflow()).runs and "set MLFLOW_TRACKING_URI" in caplog.text


def test_the_real_wandb_takes_what_it_is_told(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  for start in (0, 1):
    writer = MetricWriter(tmp_path, start=start, loggers=("wandb",), config=CONFIG)
    writer.scalars(start + 1, {"loss": 2.0, "bad": float("nan")})
    writer.image(start + 1, "drawn", np.zeros((2, 3, 3), np.uint8))
    writer.close()
  run_id = json.loads((tmp_path / "loggers" / "wandb.json").read_text())["id"]
  files = list((tmp_path / "wandb").rglob(f"run-{run_id}.wandb"))
  assert files and all(f.stat().st_size > 100 for f in files)


def test_the_real_mlflow_takes_what_it_is_told(tmp_path, monkeypatch):
  mlflow = pytest.importorskip("mlflow")
  pytest.importorskip("sqlalchemy")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(background, "_LAST", 60.0)
  for start in (0, 1):
    writer = MetricWriter(tmp_path, start=start, loggers=("mlflow",), config=CONFIG)
    writer.scalars(start + 1, {"loss": 2.0 + start, "bad": float("nan")})
    writer.text(start + 1, "answers", "a box")
    writer.close()
  assert [p.read_text() for p in (tmp_path / "mlartifacts").rglob("*") if p.is_file()][:1] == ["a box"]
  assert not (tmp_path / "mlruns").exists()  # of the current directory
  client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
  (run,) = client.search_runs([client.get_experiment_by_name("orthus").experiment_id])
  assert run.data.params["run.steps"] == "4" and run.info.status == "FINISHED"
  assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0), (2, 3.0)]

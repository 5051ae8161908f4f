"""All tests run on the CPU, on eight virtual devices."""

import atexit
import gc
import importlib.util
import logging
import os
from pathlib import Path
import shutil
import sys
import tempfile

import pytest
import quick

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What stands in the environment stays; a GPU's tests have the devices alone.
wanted = quick.flags(8).split()
if os.environ["JAX_PLATFORMS"] != "cpu":
  wanted = wanted[:1]
given = os.environ.get("XLA_FLAGS", "")
# Programs that several tests have, in whichever process, are compiled once; a session begins with none.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _COMPILED = tempfile.mkdtemp(prefix="orthus-tests-")
  os.environ |= {"JAX_COMPILATION_CACHE_DIR": _COMPILED, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
  # So are Python's modules, where nothing keeps them: each of some hundred processes takes 3 s and more for jax's alone.
  some = importlib.util.find_spec("jax")
  if some and sys.dont_write_bytecode and not os.path.exists(importlib.util.cache_from_source(some.origin)):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(_COMPILED, "python")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in wanted if flag.split("=")[0] not in given)]).strip()

# What is imported stays, and what jax keeps of its programs are some million objects: looking through all of them for cycles
# takes a second each time, freeing them one by one at the very end four.
gc.disable()
gc.set_threshold(50_000, 20, 20)
if "PYTEST_XDIST_WORKER" in os.environ:
  this = os.getpid()  # not what it forks
  atexit.register(lambda: os.getpid() == this and os._exit(0))  # after all that register later


@pytest.fixture(autouse=True)
def _audible_log():
  """The command line keeps the log to itself; what one test ran must not silence the next."""
  log = logging.getLogger("orthus_jax")
  log.propagate = True
  log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _compiled_programs_are_kept():
  """`orthus plan` keeps none, in its process; jax looks once whether to."""
  jax = sys.modules.get("jax")
  before = not jax or jax.config.jax_enable_compilation_cache
  yield
  if before and (jax := sys.modules.get("jax")) and not jax.config.jax_enable_compilation_cache:
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


# A file goes to one process whole: those that take longest first, or the last one leaves a process idle meanwhile.
_FIRST = ("plan", "recipe", "faults", "notebook", "meshes", "training", "checkpoints", "systems", "sweep_runs")


def pytest_collection_finish():
  gc.freeze()
  gc.enable()


def pytest_sessionfinish():
  gc.disable()
  gc.freeze()


def pytest_configure(config):
  if hasattr(config.option, "loadscopereorder"):  # by pytest-xdist, which would have those with most tests first
    config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Files that compare with other libraries go to one process: another one had to import PyTorch, too, for some ten seconds."""
  if config.getoption("dist") != "loadfile":
    return None
  from xdist.scheduler import LoadFileScheduling

  class Files(LoadFileScheduling):
    def _split_scope(self, nodeid):
      file = super()._split_scope(nodeid)
      return "parity" if "test_parity" in file else file

  return Files(config, log)


def pytest_collection_modifyitems(items):
  place = {f"test_{name}.py": i for i, name in enumerate(_FIRST)}
  items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_unconfigure():
  if _COMPILED:
    shutil.rmtree(_COMPILED, ignore_errors=True)


def pytest_addoption(parser):
  parser.addoption("--error-table", action="store_true", help="print the errors measured against references")


def pytest_terminal_summary(terminalreporter, config):
  if config.getoption("--error-table"):
    import measured

    for line in measured.table():
      terminalreporter.write_line(line)


# Checkpoints laid out as the published ones, each made once for all tests; imports wait until one is asked for.


@pytest.fixture(scope="session")
def model():
  """A small model's config."""
  import published_weights

  return published_weights.model_config()


@pytest.fixture(scope="session")
def values(model):
  """Its arrays, by published key."""
  import published_weights

  return published_weights.arrays(model)


@pytest.fixture(scope="session")
def orthus(model, values, tmp_path_factory) -> Path:
  """A Hugging Face directory that holds it."""
  import published_weights

  return published_weights.write(tmp_path_factory.mktemp("published") / "orthus", values, model)


@pytest.fixture(scope="session")
def native(orthus, tmp_path_factory) -> Path:
  """What `orthus convert` makes of that."""
  import converting

  folder = tmp_path_factory.mktemp("native") / "orthus"
  converting.convert(f"--from={orthus}", f"--to={folder}")
  return folder


@pytest.fixture
def copied(orthus, tmp_path) -> Path:
  """A directory to damage."""
  return shutil.copytree(orthus, tmp_path / "copied")


# What tests of buckets share.


@pytest.fixture(scope="module")
def s3_server():
  import buckets

  with buckets.s3() as server:
    yield server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
  """The server, with an empty bucket `mine`; nothing waits long."""
  import buckets

  buckets.use(s3_server, monkeypatch, tmp_path / "cache")
  return s3_server


# What tests of `orthus launch` share.


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
  """A folder ahead on the PATH."""
  folder = tmp_path / "tools"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  return folder


@pytest.fixture
def joined(monkeypatch):
  """A function from a process's variables and command to what jax is started with; None for a process that is alone."""
  import jax
  from jax._src.clusters import cloud_tpu_cluster

  from orthus_jax.config.command_line import read_config
  from orthus_jax.parallel import processes

  got: list = []
  monkeypatch.setattr(processes, "meet", lambda *a, **k: None)
  monkeypatch.setattr(processes, "_keep_stdout", lambda: None)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: got.append((*a, k["local_device_ids"])))
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)  # nothing beside the variables
  monkeypatch.setattr(cloud_tpu_cluster.socket, "gethostbyname", lambda host: "10.0.0.1")
  for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "PMI", "TPU_W", "RANK", "WORLD_SIZE", "MASTER_"))]:
    monkeypatch.delenv(name)

  def start(env: dict[str, str], command: list[str]):
    got.clear()
    with pytest.MonkeyPatch.context() as patch:
      for name, value in env.items():
        patch.setenv(name, value)
      _, options = read_config(command[2:])
      processes.initialize(**options["joining"])
    return got[0] if got else None

  return start

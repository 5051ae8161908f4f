"""Paths that users give: ~ where a shell leaves it, and places that can't be written, found out before any work."""

from pathlib import Path
import typing

import pytest
import test_ranges
import tiny

import orthus_jax as oj
from orthus_jax import cli, paths as paths_lib, training_run
from orthus_jax.commands import train
from orthus_jax.config.command_line import read_config
from orthus_jax.config.typed import PATH
from orthus_jax.errors import BadRequest

CONFIG = f"--config={Path(__file__).parent.parent}/configs/folder.py"


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  (tmp_path / "home").mkdir()
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  return tmp_path / "home"


def paths(hint) -> int:
  """How many paths a field's type declares."""
  if typing.get_origin(hint) is typing.Annotated:
    return PATH in typing.get_args(hint)
  return sum(paths(h) for h in typing.get_args(hint) if h is not Ellipsis)


def test_fields_that_are_paths_are_declared():
  declared = {name for name, hint in test_ranges.FIELDS.items() if paths(hint)}
  assert declared == {
      "data.path", "data.pictures", "data.mixture", "data.tokenizer", "run.init_from", "run.resume_from",
      "run.local_checkpoint_dir", "tokenizer_loss.perceptual_weights",
  }  # fmt: skip


def test_a_tilde_is_expanded_wherever_a_path_is_given(home, monkeypatch, capsys):
  config, options = read_config([
      CONFIG, "--workdir=~/run", "--config.data.path=~/pictures", "--config.data.tokenizer=~/tok", "--init_from=~/first",
      "--resume_from=~/second", "--config.run.local_checkpoint_dir=~/quick",
  ])  # fmt: skip
  assert options["workdir"] == f"{home}/run" and config.data.path == f"{home}/pictures"
  assert config.data.tokenizer == f"{home}/tok" and config.run.init_from == (("", f"{home}/first"),)
  assert config.run.resume_from == f"{home}/second" and config.run.local_checkpoint_dir == f"{home}/quick"
  mixed, _ = read_config([
      CONFIG, "--config.data.source=prepared", "--config.data.cache_features=False", "--config.data.path=",
      "--config.data.mixture=(('~/a',1.0),('b',2.0))",
  ])  # fmt: skip
  assert mixed.data.mixture == ((f"{home}/a", 1.0), ("b", 2.0))
  (home / "config.py").write_text(Path(CONFIG.removeprefix("--config=")).read_text())
  assert read_config(["--config=~/config.py"])[0].data.source == "jsonl"
  for argv in (["generate", "~/run", "--prompt=a"], ["evaluate", "~/run"], ["runs", "~/run"],
               ["convert", "--from=~/run", "--to=~/to"], ["generate", "r", "--requests=~/run", "--out=o"],
               ["generate", "r", "--image=~/run"], ["plan", CONFIG, "--topology=cpu:1", "--against=~/run"]):  # fmt: skip
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert f"{home}/run" in said or "--against=~/run can't be read" in said, said
  assert not list(Path().iterdir())


def test_a_model_is_loaded_from_home(home):
  with pytest.raises(BadRequest, match=f"{home}/no-run"):
    oj.load("~/no-run")


def test_nobodys_home_is_refused(home, capsys):
  assert cli.main(["train", CONFIG, "--workdir=~no-such-user/x"]) == 2
  assert "write ./~no-such-user/x" in capsys.readouterr().err
  with pytest.raises(BadRequest, match="no home directory ~nobody-at-all"):
    tiny.config(data__path="~nobody-at-all/x")
  assert paths_lib.user_path("./~x") == "./~x" and paths_lib.user_path("a/~") == "a/~" and not list(Path().iterdir())


def places(tmp_path) -> dict[str, str]:
  """Places that nothing can be written to, and what is said of each."""
  (tmp_path / "file").write_text("x")
  (tmp_path / "loop").symlink_to(tmp_path / "nowhere" / "else")
  return {
      str(tmp_path / "file" / "x"): "file is no directory", "/proc/x/y": "/proc", "a" * 300: "too long",
      str(tmp_path / "loop" / "x"): "loop",
  }  # fmt: skip


@pytest.mark.parametrize("verb", ["generate", "page", "requests", "evaluate", "train", "prepare", "convert", "data", "cache"])
def test_places_that_cannot_be_written_are_told_before_the_work(verb, tmp_path, monkeypatch, capsys):
  from orthus_jax.data.shapes import builder
  from orthus_jax.inference import model
  from orthus_jax.training.checkpoints import import_huggingface, workdir

  def never(*args, **kwargs):
    raise AssertionError("the work has begun")

  for where, what in ((model, "load"), (training_run, "run"), (builder, "prepare"), (workdir, "find"),
                      (import_huggingface, "to_native"), (train.processes, "initialize")):  # fmt: skip
    monkeypatch.setattr(where, what, never)
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "asked").write_text('{"prompt": "a"}')
  shapes = CONFIG.replace("folder", "shapes")
  before = None
  for place, why in places(tmp_path).items():
    before = before or sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("ORTHUS_CACHE", place if verb == "cache" else str(tmp_path))
    argv = {
        "generate": ["generate", "RUN", "--prompt=a", f"--out={place}"],
        "page": ["generate", "RUN", "--prompt=a", f"--out={place}/a.html"],
        "requests": ["generate", "RUN", f"--requests={tmp_path}/asked", f"--out={place}"],
        "evaluate": ["evaluate", "RUN", f"--out={place}"],
        "train": ["train", CONFIG, f"--workdir={place}"],
        "prepare": ["prepare", CONFIG, f"--out={place}"],
        "convert": ["convert", f"--from={tmp_path}", f"--to={place}/x"],
        "data": ["prepare", shapes, f"--config.data.path={place}"],
        "cache": ["train", shapes, f"--workdir={tmp_path}/run"],
    }[verb]
    assert cli.main(argv) == 2, place
    said = capsys.readouterr().err
    assert "can't be written" in said and why in said and said.count("\n") == 1, said
  assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_where_a_file_is_asked_for(tmp_path, capsys):
  for name in ("a.png", "a.md"):
    (tmp_path / name).mkdir()
    assert cli.main(["generate", "RUN", "--prompt=a", f"--out={tmp_path / name}"]) == 2
    assert "something that is no file has its name" in capsys.readouterr().err
  (tmp_path / "out" / "results.jsonl").mkdir(parents=True)
  (tmp_path / "asked").write_text('{"prompt": "a"}')
  assert cli.main(["generate", "RUN", f"--requests={tmp_path}/asked", f"--out={tmp_path}/out"]) == 2
  assert "something that is no file has its name" in capsys.readouterr().err
  assert cli.main(["generate", "RUN", "--prompt=a", f"--out={tmp_path}/a.gif"]) == 2
  assert "must be .png, .md or .html" in capsys.readouterr().err

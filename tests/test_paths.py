"""Paths that users give: ~ where a shell leaves it, and places that can't be written, found out before any work."""

import dataclasses
import json
from pathlib import Path
import typing

import pytest
import test_ranges
import tiny

from orthus_jax import cli, files, training_run
from orthus_jax.commands import train
from orthus_jax.config import to_dict
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
  assert declared == {"data.path", "data.mixture", "data.tokenizer", "run.init_from", "run.resume_from"}


def test_a_tilde_is_expanded_wherever_a_path_is_given(home, monkeypatch, capsys):
  config, options = read_config([
      CONFIG, "--workdir=~/run", "--config.data.path=~/pictures", "--config.data.tokenizer=~/tok", "--init_from=~/first",
      "--resume_from=~/second",
  ])  # fmt: skip
  assert options["workdir"] == f"{home}/run" and config.data.path == f"{home}/pictures"
  assert config.data.tokenizer == f"{home}/tok" and config.run.init_from == (("", f"{home}/first"),)
  assert config.run.resume_from == f"{home}/second"
  mixed, _ = read_config([
      CONFIG, "--config.data.source=prepared", "--config.data.cache_features=False", "--config.data.path=", "--config.data.mixture=(('~/a',1.0),('b',2.0))",
  ])  # fmt: skip
  assert mixed.data.mixture == ((f"{home}/a", 1.0), ("b", 2.0))
  (home / "config.py").write_text(Path(CONFIG.removeprefix("--config=")).read_text())
  assert read_config(["--config=~/config.py"])[0].data.source == "folder"
  for argv in (["generate", "~/run", "--prompt=a"], ["evaluate", "~/run"], ["runs", "~/run"],
               ["convert", "--from=~/run", "--to=~/to"], ["generate", "r", "--requests=~/run", "--out=o"],
               ["generate", "r", "--image=~/run"], ["plan", CONFIG, "--topology=cpu:1", "--against=~/run"]):  # fmt: skip
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert f"{home}/run" in said or "--against=~/run can't be read" in said, said
  assert not list(Path().iterdir())


def test_nobodys_home_is_refused(home, capsys):
  assert cli.main(["train", CONFIG, "--workdir=~no-such-user/x"]) == 2
  assert "write ./~no-such-user/x" in capsys.readouterr().err
  with pytest.raises(BadRequest, match="no home directory ~nobody-at-all"):
    tiny.config(data__path="~nobody-at-all/x")
  assert files.user_path("./~x") == "./~x" and files.user_path("a/~") == "a/~" and not list(Path().iterdir())

"""Whatever is wrong with a checkpoint is told at once, in one line, and nothing is left half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

from converting import refused
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax import cli, files
from orthus_jax.errors import BadRequest
from orthus_jax.interop import published_files, safetensors
from orthus_jax.training.checkpoints import zarr_arrays


def test_every_bad_array_is_named_at_once(model, values, tmp_path, capsys):
  bad = dict(values)
  del bad["model.layers.2.mlp.up_proj.weight"], bad["lm_head.weight"]
  bad["model.layers.3.mlp.up_proj.weight"] = values["model.layers.2.mlp.up_proj.weight"]
  bad["model.norm.weight"] = values["model.norm.weight"][:-1]
  folder = weights.write(tmp_path / "bad", bad, model)
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}")
  assert "(4 problems)" in error
  assert "model.layers.2.mlp.up_proj.weight 48x32 is missing" in error and "lm_head.weight 512x32 is missing" in error
  assert "model.layers.3.mlp.up_proj.weight 48x32 is unknown" in error
  assert "model.norm.weight is 31 where 32 is expected" in error
  with pytest.raises(BadRequest, match=r"4 problems"):
    oj.load(folder)


def test_of_hundreds_of_problems_the_first_are_told(model, values, tmp_path, capsys):
  folder = weights.write(tmp_path / "bad", values, model, num_hidden_layers=20)
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}")
  assert "(221 problems)" in error and error.count(" is missing") == 20 and "… and 201 more" in error


def test_files_that_are_not_what_the_index_says(copied, tmp_path, capsys):
  index = json.loads((copied / "model.safetensors.index.json").read_text())
  first, second, third = (copied / f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
  held = sum(f == first.name for f in index["weight_map"].values())
  first.unlink()
  second.write_bytes(second.read_bytes()[:-10])
  index["weight_map"]["model.absent.weight"] = third.name
  (copied / "model.safetensors.index.json").write_text(json.dumps(index))
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert f"{first.name} is missing (model.safetensors.index.json puts {held} arrays there)" in error
  assert f"{second.name} is cut off: it holds" in error
  assert f"model.absent.weight isn't in {third.name}, where model.safetensors.index.json puts it" in error
  assert "(3 problems)" in error  # arrays of files that can't be read aren't called missing


def test_other_files_that_are_missing_or_damaged(copied, tmp_path, capsys):
  (copied / "config.json").unlink()
  (copied / "tokenizer.json").unlink()
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert "config.json is missing" in error and "there is no tokenizer" in error
  (copied / "model-00001-of-00003.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{not js}")
  assert "has a damaged header" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  empty = tmp_path / "empty"
  empty.mkdir()
  assert "holds no checkpoint" in refused(capsys, f"--from={empty}", f"--to={tmp_path / 'x'}")
  (empty / "config.json").write_text('{"model_type": "chameleon"}')
  (empty / "pytorch_model.bin").write_bytes(b"")
  assert "only safetensors are read" in refused(capsys, f"--from={empty}", f"--to={tmp_path / 'x'}")


def test_a_native_checkpoint_that_disagrees_with_its_config(native, tmp_path, capsys):
  run = shutil.copytree(native, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"]["transformer"]["mlp_width"] = 40
  (run / "config.json").write_text(json.dumps(tree))
  error = refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")
  assert "(3 problems)" in error and "transformer/layers/mlp/down is (3, 48, 32) where (3, 40, 32) is expected" in error
  (run / "checkpoints/0/params/_METADATA").unlink()
  assert "can't be read as a checkpoint" in refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")


def test_requests_that_make_no_sense(orthus, native, tmp_path, capsys):
  (tmp_path / "there").mkdir()
  (tmp_path / "there/file").write_text("")
  assert "exists already" in refused(capsys, f"--from={orthus}", f"--to={tmp_path / 'there'}")
  assert "is no directory" in refused(capsys, f"--from={tmp_path / 'no'}", f"--to={tmp_path / 'x'}")
  assert "is no directory" in refused(capsys, f"--from={tmp_path / 'no'}", f"--to={tmp_path / 'x'}", "--image-head=codes")
  assert "lies within" in refused(capsys, f"--from={orthus}", f"--to={orthus / 'x'}")
  assert "is native already" in refused(capsys, f"--from={native}", f"--to={tmp_path / 'x'}", "--format=native")
  assert "a Hugging Face directory already" in refused(
      capsys, f"--from={orthus}", f"--to={tmp_path / 'x'}", "--format=huggingface"
  )
  assert "--decoder is for" in refused(capsys, f"--from={native}", f"--to={tmp_path / 'x'}", "--decoder=a")


@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_a_disk_that_fills_up_leaves_nothing(form, orthus, native, tmp_path, capsys, monkeypatch):
  source, target = (orthus, tmp_path / "x") if form == "native" else (native, tmp_path / "x")
  copy, copies = files.copy_range, []

  def full(*args):
    copies.append(args)
    if len(copies) == 50:
      assert any(tmp_path.iterdir())  # something is there by now, under another name
      raise OSError(errno.ENOSPC, "No space left on device")
    copy(*args)

  monkeypatch.setattr(zarr_arrays, "copy_range", full)
  monkeypatch.setattr(safetensors, "copy_range", full)
  assert "the disk is full" in refused(capsys, f"--from={source}", f"--to={target}")
  assert len(copies) == 50
  assert "are free there" in refused_for_want_of_space(capsys, monkeypatch, source, target)


def refused_for_want_of_space(capsys, monkeypatch, source, target) -> str:
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
  return refused(capsys, f"--from={source}", f"--to={target}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_a_signal_leaves_nothing(form, number, orthus, native, tmp_path, monkeypatch):
  before = signal.signal(number, signal.SIG_DFL)

  def ended(*_, **__):
    assert any(tmp_path.iterdir())  # something is there by now, under another name
    assert signal.getsignal(number) is not signal.SIG_DFL
    os.kill(os.getpid(), number)

  monkeypatch.setattr(published_files, "keep" if form == "native" else "write", ended)
  try:
    with pytest.raises(SystemExit) as e:
      cli.main(["convert", f"--from={orthus if form == 'native' else native}", f"--to={tmp_path / 'x'}"])
    assert signal.getsignal(number) is signal.SIG_DFL
  finally:
    signal.signal(number, before)
  assert e.value.code == 128 + number and not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_a_write_that_fails_in_earnest(form, orthus, native, tmp_path):
  # The system refuses files beyond a size: tensorstore's writes and our own end in the same line.
  source = orthus if form == "native" else native
  code = (
      "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
      "from orthus_jax import cli; from orthus_jax.training.checkpoints import export_huggingface, import_huggingface;"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); sys.exit(cli.main(sys.argv[1:]))"
  )
  argv = ["convert", f"--from={source}", f"--to={tmp_path / 'x'}", "--dtype=float32"]
  done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
  assert "couldn't be written, and nothing is left of it" in done.stderr
  assert not list(tmp_path.iterdir())

"""The command line: bad requests end in one line and status 2, and nothing is written."""

import io
import json
import os
from pathlib import Path
import platform
import subprocess
import sys

from command import orthus
import numpy as np
import pytest
import tiny

from orthus_jax import cli
from orthus_jax.commands import common
from orthus_jax.config import Config, from_dict, to_dict
from orthus_jax.config.command_line import load_config, read_config
from orthus_jax.data import images
from orthus_jax.data.shapes import builder
from orthus_jax.errors import BadRequest
from orthus_jax.parallel import processes

ROOT = Path(__file__).parent.parent
SHAPES = f"--config={ROOT}/configs/shapes.py"


def refused(argv, capsys, tmp_path=None) -> str:
  before = sorted(tmp_path.rglob("*")) if tmp_path else None
  assert cli.main(argv) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith("orthus: ") and captured.err.count("\n") == 1, captured.err
  assert not captured.out
  if tmp_path:
    assert sorted(tmp_path.rglob("*")) == before
  return captured.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config.run.stepz=3"], "unknown field --config.run.stepz; the nearest is --config.run.steps"),
        (["--config.run.steps=many"], "invalid literal"),
        (["--config.run.steps=0"], "run.steps=0 must be at least 1"),
        (["--config.optimizer.schedule=sine"], "choose one of constant, cosine, linear"),
        (["--config.data.sequence_length=12"], "too short for one image of 16 patches: set it to at least 20"),
        (["--config.mesh.fsdp=3"], "doesn't fit 8 devices"),
        (["--config.run.batch_size=3"], "make it a multiple of 8"),
        (["--config.data.tokenizer=nowhere"], "there is no tokenizer at nowhere"),
        (["--config.data.source=folder"], "data.path is empty"),
        (["--config.model.transformer.vocab_size=600"], "built-in tokenizer, as data.tokenizer names none, has 1024 tokens"),
        (["--config.run.init_from=(('', 'no.npz'),)"], "no.npz can't be read as named arrays"),
        (["--config.run.init_from=(('', 'nowhere'),)"], "nowhere"),
        (["--config.run.steps"], "lacks a value"),
        (["--config.run.loggers=('tensorboard', 'wandbb')"], "there is no 'wandbb'; the nearest is 'wandb'"),
        (["--config.run={'steps': 2}"], "is a section: override its fields, such as --config.run.batch_size=VALUE"),
        (["--config.model.vision_tokenizer.pixels=None"], "such as --config.model.vision_tokenizer.pixels.mean=VALUE"),
        (["--config.model="], "--config.model is a section"),
        (["-config.sampling=()"], "--config.sampling is a section"),
        (["--wrkdir=x"], "the nearest is --workdir"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_train_refuses(options, message, capsys, tmp_path):
  workdir = tmp_path / "run"
  assert message in refused(["train", SHAPES, f"--workdir={workdir}", "--config.run.batch_size=8", *options], capsys, tmp_path)


def test_train_refuses_files(capsys, tmp_path):
  assert "no --config" in refused(["train", "--workdir=x"], capsys)
  assert "no --workdir" in refused(["train", SHAPES], capsys)
  assert "there is no config file" in refused(["train", "--config=no.py", "--workdir=x"], capsys)
  broken = tmp_path / "broken.py"
  broken.write_text("def get_config():\n  raise ValueError('oh')\n")
  assert "fails: ValueError: oh" in refused(["train", f"--config={broken}", "--workdir=x"], capsys)
  broken.write_text("def get_config(:\n")
  assert "SyntaxError" in refused(["train", f"--config={broken}", "--workdir=x"], capsys)
  broken.write_text("from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'modle': {}})\n")
  assert "has no field 'modle'; the nearest is 'model'" in refused(
      ["train", f"--config={broken}", "--workdir=x"], capsys
  )


def test_generate_refuses(capsys, tmp_path):
  assert "nothing to go by" in refused(["generate", str(tmp_path)], capsys)
  assert "holds no checkpoint" in refused(["generate", str(tmp_path), "--prompt=a"], capsys)
  assert "nope.png" in refused(["generate", str(tmp_path), "--image=nope.png"], capsys)
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
  assert "broken.png" in refused(["generate", str(tmp_path), f"--image={broken}"], capsys, tmp_path)
  assert "must be at least 1" in refused(["generate", str(tmp_path), "--prompt=a", "--count=0"], capsys)
  assert "has 1 of '<image>' for 0 pictures" in refused(["generate", str(tmp_path), "--prompt=what is <image>"], capsys)
  picture = f"--image={images.save_png(tmp_path / 'a.png', np.zeros((2, 2, 3), np.uint8))}"
  for prompt in ("--prompt=what is <image>", "--prompt=what is this"):  # where it says, or ahead of the text
    assert "holds no checkpoint" in refused(["generate", str(tmp_path), picture, prompt], capsys)
  assert "--speed" in refused(["generate", str(tmp_path), "--prompt=a", "--speed=3"], capsys)
  assert "needs --out=DIR" in refused(["generate", str(tmp_path), "--requests=-"], capsys)
  assert "is no file" in refused(["generate", str(tmp_path), "--requests=nope", "--out=x"], capsys)
  assert "leave --prompt" in refused(["generate", str(tmp_path), "--requests=-", "--prompt=a", "--out=x"], capsys)


@pytest.mark.parametrize(
  "option", ["--images=pixels", "--contamination={}/prompts", "--processes=3", "--images-per-document=2", "--out={}/o"]
)
def test_prepare_refuses_options_that_would_do_nothing(option, capsys, tmp_path):
  name, option = option.partition("=")[0], option.format(tmp_path)
  told = refused(["prepare", "--look", str(tmp_path), option], capsys, tmp_path)
  assert f"--look writes nothing: leave {name} out, or --look" in told
  if name not in ("--out", "--images-per-document"):
    argv = ["prepare", "--source=imagefolder", str(tmp_path), f"--config={ROOT}/configs/folder.py", option]
    assert f"{name} needs --out=DIR" in refused(argv, capsys, tmp_path)


def test_unknown_verb(capsys):
  assert "unknown verb 'trian'" in refused(["trian"], capsys)
  assert cli.main(["--help"]) == 0
  assert "train a model" in capsys.readouterr().out


def test_overrides_reach_every_field():
  config, _ = read_config(
      [SHAPES, "--config.model.diffusion.draws=2", "--config.optimizer.trainable=('a','b')", "--config.data.split=test"]
  )
  assert config.model.diffusion.draws == 2 and config.optimizer.trainable == ("a", "b") and config.data.split == "test"


def test_nothing_is_an_empty_list():
  config, _ = read_config([SHAPES, "--config.optimizer.trainable=", "--config.run.init_from=", "--config.data.kinds="])
  assert config.optimizer.trainable == config.run.init_from == config.data.kinds == ()


@pytest.mark.parametrize(
    "name",
    ["shapes_tokenizer.py", "folder.py", "shapes.py"] + [f"shapes.py:{words}" for words in (
        "runlocal", "fast", "long", "direct", "direct,long", "regression", "argmin", "linear", "chameleon", "showo",
        "linear,direct", "showo,direct", "chameleon,fast",
    )],
)
def test_shipped_configs_are_valid(name):
  config, _ = read_config([f"--config={ROOT}/configs/{name}"])
  assert from_dict(Config, to_dict(config)) == config


def test_the_quickstarts_words_are_what_they_say():
  plain, fast, long, direct = (read_config([f"{SHAPES}{word}"])[0] for word in ("", ":fast", ":long", ":direct"))
  assert (fast.run.steps / plain.run.steps, long.run.steps) == (pytest.approx(0.4, abs=0.02), plain.run.steps * 3)
  documents = sum(builder.TRAIN.values())
  for config, share in ((fast, 0.5), (long, 3)):
    assert sum(n for _, n in config.data.documents) == pytest.approx(documents * share, rel=0.01)
  # The study and the recipe are of the latter, whose figures were made so.
  embedding = [(c.model.vision_embedding.temperature, c.model.vision_embedding.projection) for c in (plain, direct)]
  assert embedding == [(2.0, True), (0.3, False)]
  assert (plain.sampling.guidance, direct.sampling.guidance) == (2.0, 3.0)


def test_types_are_checked():
  with pytest.raises(BadRequest, match="run.steps='3': expected int, got str"):
    tiny.config(run__steps="3")
  with pytest.raises(BadRequest, match="expected bool"):
    tiny.config(data__cache_features=1)
  with pytest.raises(BadRequest, match="expected int, got bool"):
    tiny.config(run__steps=True)
  with pytest.raises(BadRequest, match="has no field 'widht'; the nearest is 'width'"):
    tiny.config(model__transformer__widht=3)


def test_a_config_file_is_read_as_it_is_now(tmp_path, monkeypatch):
  # Bytecode that Python keeps is known by the source's second and size alone.
  monkeypatch.setattr(sys, "dont_write_bytecode", False)
  file = tmp_path / "config.py"
  for steps in (3, 4):
    text = f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict(dict(run=dict(steps={steps})))\n"
    file.write_text(text)
    os.utime(file, (10**9, 10**9))
    assert load_config(str(file)).run.steps == steps
  assert [p.name for p in tmp_path.iterdir()] == ["config.py"]


def test_flags_of_xla_are_tried_once_for_all_that_a_command_starts(monkeypatch):
  tried = []
  run = subprocess.run
  monkeypatch.setattr(subprocess, "run", lambda *a, **k: tried.append(a) or run(*a, **k))
  monkeypatch.setenv("ORTHUS_XLA_FLAGS_TRIED", "")
  for flags, times in (("--xla_cpu_enable_fast_math=false", 1), ("--xla_cpu_enable_fast_math=true", 2)):
    monkeypatch.setenv("XLA_FLAGS", flags)
    common._check_xla_flags(flags)
    common._check_xla_flags(flags)
    assert len(tried) == times and os.environ["ORTHUS_XLA_FLAGS_TRIED"] == flags
  for flags in ("--xla_nonsense", "--xla_nonsense"):  # what isn't good is told each time
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(BadRequest, match="Unknown flag"):
      common._check_xla_flags(flags)


@pytest.mark.slow
def test_a_folder_of_pictures_is_trained_on_and_used(tmp_path, capsys, monkeypatch):
  # From pictures on disk to a drawn picture, through the commands alone.
  data = tiny.write_folder(tmp_path / "pictures", n=12)
  with (data / "metadata.jsonl").open("a") as lines:
    lines.write('{"image": "absent.png", "text": "red"}\n')
  tiny.tokenizer().save(tmp_path)
  config = tmp_path / "config.py"
  tree = to_dict(tiny.config(
      data__path=str(data), data__tokenizer=str(tmp_path), data__max_bad_share=0.2, run__report=True,
      run__sample_every=2, data__cache_features=True, optimizer__ema_decay=0.9,
  ))  # fmt: skip
  config.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tree!r})\n")
  run = tmp_path / "run"
  trained = orthus("train", f"--config={config}", f"--workdir={run}", as_users=True)
  assert "absent.png" in trained.stderr  # the bad record is named
  for name in ("report.html", "report.json", "metrics.jsonl", "samples/000002.png", "samples/000002.txt", "tokenizer.json"):
    assert (run / name).stat().st_size > 0, name
  assert list((run / "tensorboard").iterdir())
  spent = json.loads((run / "report.json").read_text())["goodput"]
  assert spent["wall"] == pytest.approx(sum(spent["seconds"].values())) and spent["seconds"]["evaluate"] > 0
  assert spent["wall"] == pytest.approx(json.loads((run / "report.json").read_text())["seconds"]["total"], rel=0.01)
  assert "the time went to: " in trained.stderr and "the time went to: " in (run / "log.txt").read_text()
  out = tmp_path / "drawn.png"
  orthus("generate", str(run), "--prompt=draw a red box", "--respond=image", f"--out={out}", as_users=True)
  assert images.load_image(out).shape == (8, 8, 3)
  page = tmp_path / "story.md"
  assert cli.main(["generate", str(run), "--prompt=two", f"--out={page}", "--max-new-tokens=40"]) == 0
  assert page.read_text().startswith("*two*")
  assert np.isfinite(images.load_image(out)).all()
  asked = '{"id": "a", "prompt": "draw a red box", "respond": "image"}\n{"prompt": "red", "steps": 0}\n'
  answers = tmp_path / "answers"
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
  capsys.readouterr()
  assert cli.main(["generate", str(run), "--requests=-", f"--out={answers}", "--json"]) == 1
  printed = capsys.readouterr()
  assert json.loads(printed.out)["failed"] == 1, printed.err
  assert images.load_image(answers / "a-0.png").shape == (8, 8, 3)


@pytest.mark.parametrize("theirs", [{}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}], ids=str)
def test_a_gpus_memory_is_taken_unless_somebody_said_how_much(theirs):
  environ = dict(theirs)
  common.take_memory(environ)
  assert environ == (theirs or {"XLA_CLIENT_MEM_FRACTION": "0.92"})


_FAULTS = """
import resource
import jax, jax.numpy as jnp
from orthus_jax.commands import common
common.keep_memory()
jax.devices()
f = jax.jit(lambda a, b: jnp.tanh(a @ b) @ a)  # a temporary array of 64 MiB
a, b = jnp.ones((4096, 64)), jnp.ones((64, 4096))
for _ in range(8): f(a, b).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8): f(a, b).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 8)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_a_program_s_memory_stays_with_the_process():
  """Pages that the kernel clears anew at each call: 16,384 and more where memory is asked to stay after jax made threads."""
  done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0 and int(done.stdout) < 12000, (done.stdout, done.stderr[-500:])


def test_training_asks_for_it_before_jax_makes_threads(monkeypatch, tmp_path):
  called = []
  monkeypatch.setattr(common, "keep_memory", lambda: called.append("memory"))
  monkeypatch.setattr(processes, "initialize", lambda **_: called.append("jax"))
  monkeypatch.setattr(common, "initialize", lambda **_: (_ for _ in ()).throw(BadRequest("no further")))
  assert cli.main(["train", SHAPES, f"--workdir={tmp_path}/run", "--config.run.steps=1"]) == 2
  assert called == ["memory", "jax"]

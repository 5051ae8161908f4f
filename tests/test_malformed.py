"""Thousands of malformed options and documents: a clean error each time, or the very value that was given."""

import ast
import io
import json
import math
from pathlib import Path
import tarfile

from hypothesis import HealthCheck, example, given, settings, strategies as st
import numpy as np
import pytest
from sources import folder_source, tar_source

from orthus_jax import cli, training_run
from orthus_jax.commands import train
from orthus_jax.config import command_line, to_dict
from orthus_jax.data import images
from orthus_jax.data.documents import Document
from orthus_jax.errors import BadRequest

CONFIG = Path(__file__).parent.parent / "configs" / "shapes.py"
OVERRIDES, ROWS, PER_FILE, TARS = 1200, 800, 20, 100
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def run_many(n: int):
  return settings(
      max_examples=n, deadline=None, derandomize=True, database=None,
      suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
  )  # fmt: skip


# --- options --------------------------------------------------------------------------------------------------------


def leaves(tree, where: str = "--config") -> dict:
  if not isinstance(tree, dict):
    return {where: tree}
  return {k: v for name, node in tree.items() for k, v in leaves(node, f"{where}.{name}").items()}


DEFAULTS = leaves(to_dict(command_line.load_config(str(CONFIG))))
LISTS = st.recursive(
    st.one_of(st.integers(-3, 9), st.floats(), st.text("ab_/", max_size=4), st.none(), st.booleans()),
    lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6,
).map(repr)  # fmt: skip
VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str), st.floats().map(str), LISTS, st.text(max_size=12),
    st.sampled_from(["", " ", "None", "nan", "inf", "-inf", "1e400", "true", "False", "[]", "()", "{}", "0x10", "1_0",
                     "((", "'",
                     "٣", "１", "__import__('os')", "adamw", "cosine", "prepared", "full", "../..", "\0", "1,2", "1;2", "²"]),
)  # fmt: skip
FIELDS = st.one_of(
    st.sampled_from(sorted(DEFAULTS)),
    st.sampled_from(sorted(DEFAULTS)).map(lambda f: f[:-1]), st.sampled_from(sorted(DEFAULTS)).map(lambda f: f + ".more"),
    st.sampled_from(["--config.run", "--config.model.transformer", "--config.", "--config..run", "--workdir", "--json",
                     "--steps", "--processes", "--process_id", "--coordinator", "--join_timeout", "--init_from",
                     "--resume_from", "-", "--",
                     "--no-json", "--nojson", "--undefok", "--flagfile", "--fromenv"]),
    st.text(max_size=8).map(lambda t: "--" + t), st.text(max_size=8),
)  # fmt: skip


@st.composite
def options(draw) -> str:
  field = draw(FIELDS)
  if draw(st.integers(0, 9)) == 0:
    return field
  default = DEFAULTS.get(field, "")
  plausible = {bool: st.booleans(), int: st.integers(-2, 5000), float: st.floats(-1, 10)}.get(type(default), st.just(default))
  return f"{field}={draw(st.one_of(VALUES, plausible.map(str)))}"


def means(given: str, value, default) -> bool:
  """Whether a field's value is what its text says."""
  if isinstance(default, bool):
    return {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}[given.lower().strip()] == value
  if isinstance(default, int):
    return int(given, 0) == value
  if isinstance(default, float):
    return float(given) == value and math.isfinite(value)
  if isinstance(default, str):
    return value == given
  try:
    wanted = ast.literal_eval(given)
  except (ValueError, SyntaxError):  # a word, or nothing
    wanted = [given] if given else []
  found = json.loads(json.dumps(value))
  wanted = json.loads(json.dumps(wanted if isinstance(wanted, (tuple, list)) else [wanted]))
  return wanted == found or repr(wanted) == repr(found)


@pytest.mark.slow
def test_options_are_taken_as_given_or_refused(tmp_path, monkeypatch, capsys):
  accepted, refused = [], []
  taken = {}

  def run(config, workdir, **kwargs):
    taken["config"] = config
    return {}

  monkeypatch.setattr(training_run, "run", run)
  monkeypatch.setattr(train.processes, "initialize", lambda **joining: None)

  @run_many(OVERRIDES)
  @given(st.lists(options(), min_size=1, max_size=2))
  @example(["--\n"])
  @example(["--config.optimizer.trainable="])
  @example(["--config.run.init_from="])
  def check(argv):
    taken.clear()
    status = cli.main(["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *argv])
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    assert status in (0, 2), (argv, status)
    if status == 2:
      refused.append(argv)
      assert out.err.startswith("orthus: ") and out.err.count("\n") == 1 and len(out.err) < 2000, (argv, out.err)
      return
    accepted.append(argv)
    if not taken:
      assert "-h" in argv or "--help" in argv
      return
    values = leaves(to_dict(taken["config"]))
    last = {a.partition("=")[0]: a.partition("=")[2] for a in argv}
    for name, text in last.items():
      name = "--" + name.lstrip("-")
      if name in DEFAULTS:
        assert means(text, values[name], DEFAULTS[name]), (argv, values[name])

  check()
  assert len(accepted) > 40 and len(refused) > 500
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("odd", ["\n", "\u2028", "\x1b[2J", "\r"])
def test_what_would_break_the_line_is_shown_escaped(odd, capsys):
  assert cli.main(["train", f"--config={CONFIG}", f"--wor{odd}kdir"]) == 2
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1 and said[:-1].isprintable() and odd.encode("unicode_escape").decode() in said


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "convert", "prepare", "plan", "runs", "nothing"])
def test_nonsense_to_any_verb_is_one_line(verb, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  @run_many(40)
  @given(st.lists(st.one_of(options(), VALUES), max_size=3))
  def check(argv):
    if {"-h", "--help"} & set(argv):
      return
    status = cli.main([verb, *argv])
    out = capsys.readouterr()
    assert (status == 2 and out.err.count("\n") == 1) or (status == 0 and not argv), (argv, status, out.err)

  check()
  assert not list(tmp_path.iterdir())


# --- documents ------------------------------------------------------------------------------------------------------

GOOD_PNG = images.png_bytes(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
GOOD_ROW = b'{"image": "good.png", "text": "a box"}'
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["image", "text", "segments", "learn", "x"]), inner, max_size=4),
    ),
    max_leaves=8,
)  # fmt: skip


@st.composite
def harmed(draw, data: bytes) -> bytes:
  """Some bytes cut off, put in, or changed."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    how = draw(st.integers(0, 3))
    if how == 0:
      del data[at:]
    elif how == 1:
      data[at:at] = draw(st.binary(max_size=6))
    elif how == 2:
      del data[at : at + draw(st.integers(1, 8))]
    elif data:
      data[at] = draw(st.integers(0, 255))
  return bytes(data)


ROW = st.one_of(
    harmed(GOOD_ROW), harmed(b'{"segments": [{"text": "a"}, {"image": "good.png", "learn": true}]}'),
    JSON.map(lambda v: json.dumps(v).encode()), st.binary(max_size=40),
    st.sampled_from([b"[" * 100_000, b'{"image": "bad.png", "text": "a box"}', b'{"image": "/etc/passwd", "text": "x"}',
                     b'{"image": ".", "text": "x"}', b'{"image": "\\u0000", "text": "x"}',
                     b'{"image": "metadata.jsonl", "text": "x"}',
                     b'{"image": "' + b"a" * 5000 + b'", "text": "x"}', b'{"text": "\\ud800", "image": "good.png"}',
                     b'{"image": "good.png", "image": "good.png", "text": 1e999}']),
).map(lambda row: row.replace(b"\n", b" "))  # fmt: skip


def test_documents_are_whole_or_skipped_and_counted(tmp_path):
  (tmp_path / "good.png").write_bytes(GOOD_PNG)

  @run_many(ROWS // PER_FILE)
  @given(st.lists(ROW, min_size=PER_FILE, max_size=PER_FILE), harmed(GOOD_PNG))
  def check(rows, picture):
    (tmp_path / "bad.png").write_bytes(picture)
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join([GOOD_ROW, *rows, GOOD_ROW]))
    source = folder_source(tmp_path, resolution=8, max_bad_share=1.0, pairs="to_image")
    found = [source[i] for i in range(len(source))]
    assert found[0] is not None and found[-1] is not None
    assert source.bad.count == sum(d is None for d in found)
    for d in found:
      if d is not None:
        assert isinstance(d, Document) and d.segments
        assert all(i.pixels.shape == (8, 8, 3) and i.pixels.dtype == np.uint8 for i in d.images)
        assert all(t.text.strip() and t.text.encode() for t in d.texts)

  check()


def _tar() -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for i in range(6):
      for extension, body in (("png", GOOD_PNG), ("txt", b"a box")):
        member = tarfile.TarInfo(f"{i}.{extension}")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
  return buffer.getvalue()


def test_tar_files_are_read_as_far_as_they_are_whole(tmp_path):
  @run_many(TARS)
  @given(st.one_of(harmed(_tar()), st.binary(max_size=2000)))
  def check(data):
    (tmp_path / "a.tar").write_bytes(data)
    try:
      source = tar_source(tmp_path, resolution=8, max_bad_share=1.0)
    except BadRequest as e:
      assert "\n" not in str(e)
      return
    found = [source[i] for i in range(len(source))]
    assert source.bad.count >= sum(d is None for d in found)

  check()

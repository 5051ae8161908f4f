"""What the pages name is there: commands as the program's own parsers take them, fields, files, functions, headings.

Nothing is run: that a command does what its page says is the matter of the tests of its verb.
"""

import ast
import contextlib
import functools
import importlib
import io
import os
from pathlib import Path
import re
import shlex
import tempfile

from documented import CONFIGS, PAGES, ROOT, anchors, blocks, commands, in_the_code, in_the_config, inline, links
import pytest

from orthus_jax import cli
from orthus_jax.commands import benchmark, launch, plan, prepare, runs, sampling, score, sweep
from orthus_jax.config import Config
from orthus_jax.config.command_line import read_config
from orthus_jax.config.data import LAYOUTS
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import registry
from orthus_jax.planning import hardware
from orthus_jax.storage.bucket import is_url
from orthus_jax.sweeping import plan as sweep_plan

# What stands for the reader's own, by something of that kind.
STANDS_FOR = {"--source=NAME": "--source=jsonl", "--config=FILE": "--config=configs/shapes.py"}
SECTIONS = ("model", "sampling", "data", "optimizer", "tokenizer_loss", "mesh", "run")
named = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


# --- commands -------------------------------------------------------------------------------------------------------


def _train(argv, elided):
  config, options = read_config(argv, default=Config() if elided else None)
  assert options["workdir"] or elided, "no --workdir"


def _plan(argv, elided):
  own, rest = plan._split(argv)
  if "calibration" in own:
    return
  read_config(rest, default=Config() if elided else None)
  if not elided:
    hardware.parse(own["topology"], int(own.get("slices", 1)))


def _prepare(argv, elided):
  options, rest = prepare._parser().parse_known_args(argv)
  strange = [a for a in rest if not a.startswith("--config.")]
  assert not strange, f"unknown option {strange}"
  if not options.look:
    options.tokenizer = options.tokenizer or ("FILE" if elided else None)
    prepare._config(options, rest)


def _sweep(argv, elided):
  flags = [a for a in argv if a.startswith("--config")]
  options = sweep._parser().parse_args([a for a in argv if a not in flags])
  spec = next(a.partition("=")[2] for a in flags if a.startswith("--config="))
  common = [a for a in flags if not a.startswith("--config=")]
  sweep_plan.plan(spec, common=common, more=sweep._more(options), evaluate=options.evaluate)


def _score(argv, elided):
  score.parser(argv[0], registry.module(argv[0])).parse_args(argv[1:])


def _launch(argv, elided):
  with tempfile.TemporaryDirectory() as folder:
    setup = Path(folder) / "setup.sh"
    setup.touch()
    argv = [f"--setup={setup}" if a.startswith("--setup=") else a for a in argv if a != "--dry-run"]
    with contextlib.redirect_stdout(io.StringIO()):
      assert launch.main(["--dry-run", *argv]) == 0


def _runs(argv, elided):
  argv = ["nowhere" if is_url(a) else a for a in argv]
  with tempfile.TemporaryDirectory() as nowhere, contextlib.chdir(nowhere):  # parsed is what comes to look for a directory
    with pytest.raises(BadRequest, match="there is no directory"):
      runs.main(argv)


_OWN = {"train": _train, "plan": _plan, "prepare": _prepare, "sweep": _sweep, "score": _score, "runs": _runs, "launch": _launch}


def _check_orthus(argv, elided):
  """Parses a command as far as it goes without doing anything; `elided`, where the page leaves some of it out."""
  verb, rest = argv[0], [STANDS_FOR.get(a, a) for a in argv[1:]]
  if verb not in cli._VERBS:
    raise BadRequest(f"unknown verb {verb!r}")
  if "--help" in rest:
    _help(verb, *(a for a in rest if a != "--help"))
  elif verb in _OWN:
    _OWN[verb](rest, elided)
  else:
    module = importlib.import_module(f"orthus_jax.commands.{verb}")
    options = (getattr(module, "parser", None) or module._parser)().parse_args(rest)
    if hasattr(options, "guidance"):
      sampling.given(options)
    if verb == "evaluate":
      benchmark.check(options)


def _check(words):
  """A command of any kind: what of it is ours must be there."""
  elided = "…" in words
  words = [w for w in words if w != "…"]
  if words[0] == "orthus":
    _check_orthus(words[1:], elided)
  elif words[0] == "pip":
    extras = {e for found in re.findall(r"\[([\w,]+)\]", " ".join(words)) for e in found.split(",")}
    unknown = extras - set(_extras())
    assert not unknown, f"setup.py has no extra {unknown}"
  elif words[0] == "python" and words[1].startswith("benchmarks/"):
    source = (ROOT / words[1]).read_text()
    unknown = {o for o in re.findall(r"--[a-z][\w-]*", " ".join(words[2:])) if f'"{o}' not in source}
    assert not unknown, f"{words[1]} has no {unknown}"
  for word in words:  # programs, tests and scripts of ours
    if re.match(r"(benchmarks|launch|tests|findings|notebooks)/", word):
      assert list(ROOT.glob(word)), f"there is no {word}"


def _extras():
  tree = ast.parse((ROOT / "setup.py").read_text())
  given = next(k.value for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords if k.arg == "extras_require")
  return [key.value for key in given.keys]


@functools.cache  # pages show the same ones
def _wrong(words):
  """What is wrong with a command, or nothing."""
  try:
    _check(words)
  except (BadRequest, AssertionError, KeyError, OSError, StopIteration, SystemExit, pytest.fail.Exception) as e:
    return f"{shlex.join(words)}: {type(e).__name__} {e}"


@named
def test_commands_of_blocks(page):
  found = blocks(page.read_text())
  scripts = [body for language, body in found if language in ("bash", "sh") or (not language and body.startswith("orthus "))]
  wrong = [w for script in scripts for words in commands(script) if (w := _wrong(tuple(words)))]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", CONFIGS, ids=[f.name for f in CONFIGS])
def test_commands_at_the_head_of_configs(file):
  head = ast.get_docstring(ast.parse(file.read_text())) or ""
  script = "\n".join(part for part in head.split("\n\n") if re.match(r" +(orthus|launch/)", part))
  wrong = [w for words in commands(script) if (w := _wrong(tuple(words)))]
  assert script
  assert not wrong, "\n".join(wrong)


@functools.cache
def _help(*argv):
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    try:
      status = cli.main([*argv, "--help"])
    except SystemExit as e:
      status = e.code
  assert not status, f"orthus {' '.join(argv)} --help ends with {status}"
  return out.getvalue()


@named
def test_commands_in_the_text(page):
  """These are often told in part: their verbs and options must be there."""
  wrong = []
  for code in inline(page.read_text()):
    verb, *rest = code.split()[1:] or ["VERB"]
    if not code.startswith("orthus ") or verb == "VERB":
      continue
    if verb not in cli._VERBS:
      wrong.append(f"{code}: there is no such verb")
      continue
    told = _help(verb, *(r for r in rest[:1] if r in ("verify", *registry.BENCHMARKS)))
    options = set(re.findall(r"--[a-z][\w-]*", code)) - {"--config", "--debug", "--help"}
    wrong += [f"{code}: orthus {verb} has no {o}" for o in options if not re.search(rf"{o}(?![\w-])", told)]
  assert not wrong, "\n".join(wrong)


# --- fields, files, functions ---------------------------------------------------------------------------------------


@named
def test_fields(page):
  text = page.read_text()
  named = set(re.findall(r"--config\.([a-z]\w*(?:\.\w+)+)", text)) - {"some.field"}
  for code in inline(text):
    if found := re.fullmatch(rf"((?:{'|'.join(SECTIONS)})\.[a-z_][\w.]*)(=.*)?", code):
      named.add(found[1])
  files = {n for n in named if re.search(r"\.(py|md|json|jsonl|csv|npz|html|png|yml|safetensors|weight)$", n)}
  wrong = [n for n in named - files if not in_the_config(n) and not in_the_code(n)]
  assert not wrong, f"no such fields: {sorted(wrong)}"


@named
def test_files(page):
  """Configs with their variants, programs, tests: wherever they are named."""
  text = page.read_text()
  found = set(re.findall(r"(?<![\w/.])((?:configs|benchmarks|launch|tests|findings|notebooks|docs)/[\w/.]+\.\w+)", text))
  wrong = [f for f in found if not (ROOT / f).exists() and "NAME" not in f]
  assert not wrong, f"no such files: {sorted(wrong)}"


@named
def test_functions(page):
  """Python blocks can be read, and what they take of the package is in it."""
  wrong = []
  for language, body in blocks(page.read_text()):
    if language != "python":
      continue
    for node in ast.walk(ast.parse(body)):
      if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orthus_jax"):
        module = importlib.import_module(node.module)
        wrong += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)
                  and not in_the_code(f"{node.module}.{a.name}".partition(".")[2])]  # fmt: skip
      elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("oj", "sweep"):
        module = importlib.import_module("orthus_jax" + (".sweep" if node.value.id == "sweep" else ""))
        wrong += [] if hasattr(module, node.attr) else [f"{node.value.id}.{node.attr}"]
  assert not wrong, wrong


@named
def test_links(page):
  wrong = []
  for link in links(page.read_text()):
    place, _, anchor = link.partition("#")
    file = page.parent / place if place else page
    if not file.exists():
      wrong.append(f"{link}: there is no {os.path.relpath(file, ROOT)}")
    elif anchor and anchor not in anchors(file.read_text()):
      wrong.append(f"{link}: {os.path.relpath(file, ROOT)} has no such heading")
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("url", ["", "https://host.example/blob/main/"])
def test_links_out_of_the_site(tmp_path, url):
  """A file outside docs/ is linked on the host of the code, or, where there is none, in a copy."""
  build = pytest.importorskip("sphinx.cmd.build", reason="pip install -e '.[docs]'")
  (tmp_path / "docs").mkdir()
  (tmp_path / "a.sh").write_text("exit\n")
  (tmp_path / "docs/index.md").write_text("# A\n\n[`a.sh`](../a.sh)\n")
  path = f"import sys; sys.path.append({str(ROOT / 'docs/_extensions')!r})"
  (tmp_path / "docs/conf.py").write_text(f"{path}\nextensions = ['myst_parser', 'links']\noutside_url = {url!r}\n")
  assert build.main(["-W", "-q", str(tmp_path / "docs"), str(tmp_path / "site")]) == 0
  page = (tmp_path / "site/index.html").read_text()
  copies = [f.read_text() for f in (tmp_path / "site").rglob("a.sh")]
  assert ('href="https://host.example/blob/main/a.sh"' in page, copies) == (bool(url), [] if url else ["exit\n"])


# --- the reference has everything -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page, said, names",
    [
        ("commands", "```{{orthus}} {} --help", cli._VERBS),
        ("layouts", "```{{orthus}} prepare --source={} --help", LAYOUTS),
        ("scores", "autofunction:: orthus_jax.scores.{}\n", registry.BENCHMARKS),
    ],
)
def test_reference_has_all(page, said, names):
  text = (ROOT / f"docs/reference/{page}.md").read_text()
  assert [n for n in names if said.format(n) not in text] == []


def test_scripts_are_read_as_a_shell_reads_them():
  script = """C=configs/a.py  T="--x=b c"
orthus train --config=$C $T \\
  --more='it''s'   # what's this?
pip install x && cat in | orthus go > out  # "
python -c "
import a
b"
"""
  assert list(commands(script)) == [
      ["orthus", "train", "--config=configs/a.py", "--x=b", "c", "--more=its"], ["pip", "install", "x"], ["cat", "in"],
      ["orthus", "go"], ["python", "-c", "\nimport a\nb"],
  ]  # fmt: skip

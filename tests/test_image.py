"""The container image's recipe, and the lock files that it and CI install from."""

import ast
from pathlib import Path
import re
import subprocess

from launching import checker
from packaging.requirements import Requirement
import pytest

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
RECIPE = LAUNCH / "Dockerfile"
ENVIRONMENT = {"python_version": "3.12", "python_full_version": "3.12.12", "sys_platform": "linux"}


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
  """Package → (version, hashes) of a lock file."""
  text = re.sub(r"(?m)^\s*#.*\n?", "", (LAUNCH / f"requirements-{name}.lock").read_text())
  found = {}
  for entry in filter(str.strip, re.split(r"(?m)^(?=\S)", text)):
    first, *hashes = entry.replace("\\\n", " ").split()
    package, _, version = first.partition("==")
    assert version and hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), entry
    found[package] = version, frozenset(hashes)
  return found


def wanted(extra: str) -> list[Requirement]:
  """What setup.py asks for, with an extra."""
  call = next(n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(n, ast.Call) and n.keywords)
  arguments = {k.arg: k.value for k in call.keywords}
  extras = {ast.literal_eval(k): v for k, v in zip(arguments["extras_require"].keys, arguments["extras_require"].values)}
  return [Requirement(r) for r in (*ast.literal_eval(arguments["install_requires"]), *ast.literal_eval(extras[extra]))]


@pytest.mark.parametrize("extra", ["tpu", "cuda"])
def test_a_lock_holds_what_setup_asks_for(extra):
  locked = pins(extra)
  for requirement in wanted(extra):
    name = requirement.name.lower().replace("_", "-")
    if requirement.marker is None or requirement.marker.evaluate(ENVIRONMENT):
      assert locked[name][0] in requirement.specifier, f"{requirement}: launch/requirements-{extra}.lock has {locked[name][0]}"
  assert {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}[extra] in locked and "uvicorn" in locked


def test_the_locks_differ_in_their_accelerators_alone():
  tpu, cuda = pins("tpu"), pins("cuda")
  assert all(tpu[name] == cuda[name] for name in set(tpu) & set(cuda))
  assert set(tpu) - set(cuda) == {"libtpu"} and all(n.startswith(("nvidia-", "jax-cuda")) for n in set(cuda) - set(tpu))
  assert list(pins("build")) == ["setuptools"]


@pytest.mark.parametrize("lock", sorted(LAUNCH.glob("*.lock")), ids=lambda p: p.name)
def test_a_lock_tells_how_it_is_made_and_not_from_where(lock):
  head = "".join(lock.read_text().splitlines(keepends=True)[:2])
  assert "uv pip compile" in head and "--generate-hashes" in head and f"-o launch/{lock.name}" in head
  assert "://" not in lock.read_text() and "index" not in head


def instructions() -> list[tuple[str, str]]:
  text = re.sub(r"(?m)^#.*\n", "", RECIPE.read_text()).replace("\\\n", " ")
  return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_an_image_is_made_of_pinned_parts_and_runs_as_a_user():
  made = instructions()
  arguments = dict(rest.split("=", 1) for word, rest in made if word == "ARG")
  bases = [rest.split()[0].replace("${PYTHON}", arguments["PYTHON"]) for word, rest in made if word == "FROM"]
  assert len(bases) == 2 and all(re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base) for base in bases)
  assert [rest for word, rest in made if word == "USER"] == ["${UID}:1000"] and arguments["UID"] == "1000"
  assert not [rest for word, rest in made if word == "ADD"]
  installs = [i for word, rest in made if word == "RUN" for i in re.findall(r"pip install ([^&]*[^& ])", rest)]
  assert len(installs) == 3 and all("--no-deps" in i and ("--require-hashes" in i or i.endswith(" .")) for i in installs)


def test_an_image_takes_what_is_there_and_its_ignore_file_lets_through():
  allowed = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
  for word, rest in instructions():
    if word == "COPY" and not rest.startswith("--from"):
      for source in rest.split()[:-1]:
        for accelerator in ("tpu", "cuda"):
          path = source.replace("${ACCELERATOR}", accelerator)
          assert (ROOT / path).exists() and any(Path(path).match(a) for a in allowed), path


def test_hadolint_finds_nothing(tmp_path):
  hadolint = checker("hadolint")
  done = subprocess.run([hadolint, RECIPE], capture_output=True, text=True)
  assert not done.returncode, done.stdout
  (tmp_path / "Dockerfile").write_text("FROM python\nADD http://a.b/c /c\n")
  assert subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True).returncode

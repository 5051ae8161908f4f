#!/usr/bin/env bash
# `pytest -n 2 --dist loadgroup` spreads the tests of a group over both processes, and says nothing.
#
# One would guess: tests marked with one `xdist_group` run in one process, so that they share what is dear to make (compiled programs,
#   a fixture of a module) and never meet what only one process may hold.
# What happens: pytest-xdist tells its scheduler of a group by writing it behind the test's private `_nodeid`; pytest 9.2 keeps node ids
#   elsewhere, so what is written is read by nobody and each test is a group of its own. `--dist loadfile` goes by the public id and
#   keeps its word. (pytest-xdist's issue 1386 has it of pytest's main branch.)
# Why it matters here: this project's test command grouped by file so that a file's tests compile a program once; fixtures and programs
#   were made in both processes. `--dist loadfile` is what the README says now.
# Versions: pytest 9.2.0 beside 9.1.1, pytest-xdist 3.8.0, Python 3.11 or newer. Seen on 2026-11-30.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED="9.1.1 loadgroup: 1 process; 9.2.0 loadgroup: 2 processes; 9.2.0 loadfile: 1 process"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/test_group.py" << 'PYTHON'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("i", range(8))
def test_group(i):
  time.sleep(0.1)  # long enough for the other process to ask for work
  with open(os.environ["SEEN"], "a") as seen:
    print(os.getpid(), file=seen)
PYTHON
found=()
for version in 9.1.1 9.2.0; do
  python3 -m venv "$work/$version" || exit 2
  "$work/$version/bin/pip" install --quiet "pytest==$version" pytest-xdist==3.8.0 || exit 2
  "$work/$version/bin/python" -c 'import pytest, xdist; print("pytest", pytest.__version__, "pytest-xdist", xdist.__version__)'
  for way in loadgroup loadfile; do
    rm -f "$work/seen"
    (cd "$work" && SEEN=$work/seen "$work/$version/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist "$way" test_group.py) > "$work/log" || exit 2
    [ -s "$work/seen" ] || exit 2
    n=$(sort -u "$work/seen" | wc -l)
    echo "pytest $version --dist $way: eight tests of one group in $n process(es)"
    if [ "$version $way" != "9.1.1 loadfile" ]; then
      found+=("$version $way: $n process$([ "$n" = 1 ] || echo es)")
    fi
  done
done
line="${found[0]}; ${found[1]}; ${found[2]}"
if [ "$line" = "$EXPECTED" ]; then
  echo "as described: $line"
else
  echo "CHANGED: $line (expected: $EXPECTED)"
  exit 1
fi

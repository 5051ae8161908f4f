"""What the pages say: blocks, the commands in these, inline code, headings, links; and whether what they name is there."""

from collections.abc import Iterator
import importlib
from pathlib import Path
import re
import shlex

from orthus_jax.config import Config

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

_PARTS = re.compile(r""""[^"]*"|'[^']*'|\\\n|(?<!\S)\#.*|\n|.""")  # of a script: quoted texts, joined lines, comments, the rest
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str]]:
  """(language, lines) of each fenced block."""
  return [(info.strip(), body) for info, body in _FENCE.findall(text)]


def prose(text: str) -> str:
  """A page without its fenced blocks."""
  return _FENCE.sub("", text)


def inline(text: str) -> list[str]:
  """Code within its prose; a line break in it is a blank."""
  return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def commands(script: str) -> Iterator[list[str]]:
  """The simple commands of a script, each as its words: variables that the script sets are filled in, redirections left out."""
  variables: dict[str, str] = {}
  for line in _lines(script):
    for name, value in variables.items():
      line = re.sub(rf"\${name}\b", lambda _, v=value: v, line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
      if word in (";", "&&", "||", "|", "&"):
        while words and (found := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
          variables[found[1]] = found[2]
          words = words[1:]
        if words:
          yield words[: words.index(">")] if ">" in words else words
        words = []
      else:
        words.append(word)


def _lines(script: str) -> Iterator[str]:
  """Lines without comments, those that go on joined; a quoted text may hold line breaks."""
  line = ""
  for part in _PARTS.findall(script + "\n"):
    if part == "\n":
      yield line
      line = ""
    elif not part.startswith("#") or line[-1:].strip():
      line += " " if part == "\\\n" else part


def links(text: str) -> list[str]:
  """Where its links lead, but for those to other hosts."""
  found = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))
  return [to for to in found if not re.match(r"https?:", to)]


def anchors(text: str) -> set[str]:
  """What links to its headings end in, as code hosts and MyST have it."""
  titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
  plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
  return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}


def in_the_config(path: str) -> bool:
  """Whether the config has a field or section of a dotted path."""
  node = Config()
  for part in path.split("."):
    if not hasattr(node, part):
      return False
    node = getattr(node, part)
  return True


def in_the_code(path: str) -> bool:
  """Whether the package has a module, or something in one, of a dotted path."""
  parts = path.split(".")
  for n in range(len(parts), 0, -1):
    try:
      node = importlib.import_module(".".join(["orthus_jax", *parts[:n]]))
    except ModuleNotFoundError:
      continue
    return all(hasattr(node, parts[n]) for _ in parts[n : n + 1])
  return False

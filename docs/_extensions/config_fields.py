"""Every field of the config with its type, its range, its default and what its class's docstring says of it.

    ```{config-fields}
    ```
"""

from collections.abc import Iterator
import dataclasses
import inspect
import re
import types
import typing
from typing import Annotated, Any, Literal

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from orthus_jax.config import Config, ranges

_NAMES = {str: "text", int: "whole number", float: "number", bool: "`True` or `False`"}


def sections(cls: type, path: str = "") -> Iterator[tuple[str, type]]:
  """Each config class with the dotted path at which it stands, its own sections after it."""
  yield path, cls
  for name, hint in ranges.hints(cls).items():
    if dataclasses.is_dataclass(hint):
      yield from sections(hint, f"{path}.{name}".lstrip("."))


def described(cls: type) -> tuple[str, dict[str, str]]:
  """A docstring's head, and what its Attributes say by name.

  Raises:
    ValueError: if they name what is no field.
  """
  head, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
  told: dict[str, str] = {}
  for entry in re.split(r"\n(?=  \S)", "\n" + rest.rstrip())[1:]:
    names, _, text = entry.strip().partition(":")
    told |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
  if strange := set(told) - set(ranges.hints(cls)):
    raise ValueError(f"{cls.__name__}'s docstring tells of {min(strange)}, which is no field of it")
  return head.strip(), told


def kind(hint: Any) -> str:
  """A type in words."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    found = next((m for m in args[1:] if isinstance(m, ranges.Range)), None)
    return f"{kind(args[0])}, {found}" if found else "path"
  if origin is Literal:
    return ", ".join(f"`{a!r}`" for a in args)
  if origin is tuple:
    if len(args) == 2 and args[1] is Ellipsis:
      return f"list of {kind(args[0])}"
    return "(" + "; ".join(map(kind, args)) + ")"
  if origin in (types.UnionType, typing.Union):
    return " or ".join("None" if a is type(None) else kind(a) for a in args)
  return _NAMES.get(hint) or hint.__name__


class ConfigFields(SphinxDirective):
  """A section for each config class, an entry for each of its fields."""

  has_content = False

  def run(self) -> list[nodes.Node]:
    self.env.note_reread()  # the page changes with the code
    return [self._section(path, cls) for path, cls in sections(Config)]

  def _section(self, path: str, cls: type) -> nodes.Node:
    try:
      head, told = described(cls)
    except ValueError as e:
      raise self.error(str(e)) from e
    name = path or "config"
    section = nodes.section(ids=[nodes.make_id(name)], names=[name])
    section += nodes.title("", name)
    lines = [head, "", f"In Python: `orthus_jax.config.{cls.__name__}`.", ""]
    for field in dataclasses.fields(cls):
      hint = ranges.hints(cls)[field.name]
      if dataclasses.is_dataclass(hint):
        continue
      if field.name not in told:
        raise self.error(f"{cls.__name__}'s docstring doesn't tell what {field.name} is")
      lines += [
          f"```{{confval}} {path}{'.' * bool(path)}{field.name}", f":type: {kind(hint)}", f":default: `{field.default!r}`",
          "", told[field.name], "```", "",
      ]  # fmt: skip
    section += self.parse_text_to_nodes("\n".join(lines))
    return section


def setup(app: Sphinx) -> dict:
  app.add_directive("config-fields", ConfigFields)
  return {"parallel_read_safe": True}

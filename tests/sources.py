"""Sources as the registry opens them, for tests that read some."""

from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset
from orthus_jax.errors import BadRequest


def folder_source(path, annotations="", *, pairs="both", **options) -> LayoutSource:
  return LayoutSource(Jsonl(path, Options(annotations=annotations, pairs=pairs)), **options)


def tar_source(path, *, pairs="both", **options) -> LayoutSource:
  return LayoutSource(WebDataset(path, Options(pairs=pairs)), **options)


def rejected(source: LayoutSource) -> list[str]:
  """What is wrong with each bad row, short of its pictures."""
  out = []
  for row in range(source.rows):
    try:
      source.layout.drafts(row)
    except BadRequest as e:
      out.append(str(e))
  return out

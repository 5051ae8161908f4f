"""Sources as the registry opens them, for tests that read some."""

from orthus_jax.data.sources.jsonl import Jsonl
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset


def folder_source(path, annotations="", *, pairs="both", **options) -> LayoutSource:
  return LayoutSource(Jsonl(path, Options(annotations=annotations, pairs=pairs)), **options)


def tar_source(path, *, pairs="both", **options) -> LayoutSource:
  return LayoutSource(WebDataset(path, Options(pairs=pairs)), **options)

"""The notebook runs from top to bottom on a (barely trained) model."""

import os
from pathlib import Path

from command import orthus
import pytest

from orthus_jax.data.shapes import builder

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  run = tmp_path / "run"
  few = tuple((kind, min(n, 20)) for kind, n in builder.TRAIN.items())
  argv = [
      "train", f"--config={ROOT}/configs/shapes.py:runlocal", f"--workdir={run}", "--config.run.report=False",
      "--config.run.batch_size=8", "--config.run.steps=2", "--config.data.kinds=(('planned_story',1.0),('planned_edit',1.0))",
      f"--config.data.documents={few!r}",
      "--config.sampling.steps=4", "--config.sampling.max_new_tokens=40",
      # A shallow model: its programs, which are compiled and run a few times, are what takes the time.
      "--config.model.transformer.layers=1", "--config.model.transformer.scan_unroll=1", "--config.model.diffusion.blocks=1",
  ]  # fmt: skip
  orthus(*argv)
  monkeypatch.setenv("ORTHUS_RUN", os.fspath(run))
  notebook = nbformat.read(ROOT / "notebooks" / "shapes.ipynb", as_version=4)
  nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
  outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
  assert not any(o.output_type == "error" for o in outputs)
  assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2  # what was drawn, and its edit

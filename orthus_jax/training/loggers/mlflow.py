"""MLflow: to the server that MLFLOW_TRACKING_URI names, or else to WORKDIR/mlflow.db."""

from __future__ import annotations

from collections.abc import Iterator
import math
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from orthus_jax.training.loggers import base

_EXPERIMENT = "orthus"  # where MLFLOW_EXPERIMENT_NAME doesn't say another
# A thread of ours tries again, and would be held up by minutes of tries within.
_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_AT_ONCE = 100  # parameters that it takes in one call, each of
_LONGEST = 500  # letters


class MLflow:
  """A `Logger` to a run of MLflow."""

  def __init__(self, client: Any, run_id: str):
    self._client, self._id = client, run_id

  def scalars(self, step: int, values: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    self._client.log_batch(self._id, metrics=[Metric(n, v, now, step) for n, v in values.items() if math.isfinite(v)])

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    self._client.log_image(self._id, pixels, key=name, step=step)

  def text(self, step: int, name: str, text: str) -> None:
    self._client.log_text(self._id, text, f"{name}/{step:06d}.txt")

  def close(self) -> None:
    self._client.set_terminated(self._id, "FINISHED")


def open_logger(workdir: Path, *, start: int, config: dict[str, Any]) -> MLflow:
  """As `base.Open` says."""
  for name, value in _REQUESTS.items():
    os.environ.setdefault(name, value)
  from mlflow import MlflowClient
  from mlflow.entities import Param

  place, elsewhere = workdir.absolute(), os.environ.get("MLFLOW_TRACKING_URI")
  if not elsewhere and "?" in str(place):
    raise ValueError(f"MLflow's database can't lie in {place}, whose name has a question mark: set MLFLOW_TRACKING_URI")
  client = MlflowClient(elsewhere or f"sqlite:///{place}/mlflow.db")
  run_id = base.kept_id(workdir, "mlflow")
  if run_id:
    client.update_run(run_id, status="RUNNING")
    return MLflow(client, run_id)
  name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
  experiment = client.get_experiment_by_name(name)
  experiment_id = experiment.experiment_id if experiment else client.create_experiment(
      name, artifact_location=None if elsewhere else (place / "mlartifacts").as_uri()  # by default, the current directory
  )
  run_id = client.create_run(experiment_id, run_name=workdir.name).info.run_id
  base.keep_id(workdir, "mlflow", run_id)
  params = [Param(k, str(v)[:_LONGEST]) for k, v in _flat(config)]
  for i in range(0, len(params), _AT_ONCE):
    client.log_batch(run_id, params=params[i : i + _AT_ONCE])
  return MLflow(client, run_id)


def _flat(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{where}{name}.")
    else:
      yield f"{where}{name}", value

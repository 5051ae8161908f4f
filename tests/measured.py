"""Errors against references: asserted, and kept for the table that `pytest --error-table` prints."""

import numpy as np

# By name: (the largest error seen, the error allowed).
RECORDS: dict[str, tuple[float, float]] = {}


def relative_error(value, reference) -> float:
  """Norm of the difference over norm of the reference, in fp64."""
  value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
  assert value.shape == reference.shape, (value.shape, reference.shape)
  return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def close(name: str, value, reference, limit: float) -> None:
  """Fails where the relative error is above `limit`.

  Args:
    name: a row of the table; of several comparisons under one name the largest error stays.
    value: ours.
    reference: theirs, of the same shape.
    limit: the largest relative error allowed.
  """
  error = relative_error(value, reference)
  RECORDS[name] = (max(error, RECORDS.get(name, (0.0, 0.0))[0]), limit)
  assert error <= limit, f"{name}: relative error {error:.2e}, allowed {limit:.0e}"


def table() -> list[str]:
  """The records as the lines of a Markdown table."""
  rows = [f"| {name} | {error:.1e} | {limit:.0e} |" for name, (error, limit) in RECORDS.items()]
  return ["| compared | relative error | allowed |", "|---|---|---|", *rows]

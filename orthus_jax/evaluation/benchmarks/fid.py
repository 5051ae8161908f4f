"""FID and KID, as clean-fid has them: how far two sets of features of pictures are apart."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
import warnings

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import arrays
from orthus_jax.evaluation.benchmarks.base import Notes, Score, under
from orthus_jax.files import first_line

LAYOUT = """PATH and --reference are features of two sets of pictures, [samples, dimensions], in .npy or .npz files; either may
be clean-fid's statistics, an .npz of mu and sigma, from which there is no KID.
Which network made the features is for you to say: figures of other networks, weights or resizes can't be compared."""
OPTIONS = {
    "reference": "the other set's features; default PATH, for --reference-array",
    "array": "the features' name in PATH, where it has several", "reference_array": "their name in the reference",
    "network": "what made the features, such as inception_v3; it is recorded beside the figures",
    "weights": "the network's weights file; it is recorded too",
    "features": "which of its outputs they are, such as the spatial ones of sFID, whose formula is the same; recorded too",
    "num_subsets": "KID's draws; 100", "max_subset_size": "KID's samples a draw; 1000", "seed": "of KID's draws; 0",
}  # fmt: skip
PROTOCOL = "clean-fid 0.1.35 (GaParmar/clean-fid e88c4d62)"
_WHAT = "features of pictures"


def score(
    path: str | Path, *, reference: str | Path | None = None, array: str | None = None, reference_array: str | None = None,
    network: str | None = None, weights: str | None = None, features: str | None = None, num_subsets: int = 100,
    max_subset_size: int = 1000, seed: int = 0,
) -> Score:  # fmt: skip
  """Fréchet distance (FID) and kernel distance (KID) of two sets of features.

  Args:
    path: features of the pictures that are scored (LAYOUT).
    reference: those of the pictures that they are held to.
    array, reference_array: names within .npz files.
    network, weights, features: what made the features; recorded in the protocol.
    num_subsets, max_subset_size, seed: of the kernel distance.

  Raises:
    BadRequest: if a file is missing, holds something else, or has features of other dimensions.
  """
  if reference is None and reference_array is None:
    raise BadRequest("FID is of two sets: give the other's features by reference")
  if num_subsets < 1 or max_subset_size < 2:
    raise BadRequest("KID needs one subset or more, of two samples or more")
  notes = Notes()
  other = path if reference is None else reference
  a_ND, a_stats = _read(Path(path), array, notes)
  b_ND, b_stats = _read(Path(other), reference_array, notes)
  if len(a_stats[0]) != len(b_stats[0]):
    dimensions = f"{len(a_stats[0])} dimensions and {other} of {len(b_stats[0])}"
    raise BadRequest(f"{path} has features of {dimensions}: both must be of one network")
  try:
    scores = {"FID": frechet_distance(*a_stats, *b_stats)}
    if not np.isfinite(scores["FID"]):
      raise ValueError("features so large that their distance is no finite number")
  except ValueError as e:
    raise BadRequest(f"{path} and {other}: {first_line(e)}") from e
  counts = {"FID": len(a_ND)} if a_ND is not None else {}
  if a_ND is not None and b_ND is not None:
    scores["KID"] = kernel_distance(a_ND, b_ND, num_subsets=num_subsets, max_subset_size=max_subset_size, seed=seed)
    counts["KID"] = min(len(a_ND), len(b_ND), max_subset_size)
  else:
    notes.say("no KID, as mu and sigma tell nothing of single pictures")
  named = [f"{k} {v}" if v else f"{k} not named" for k, v in (("network", network), ("weights", weights))]
  protocol = f"{PROTOCOL}, {', '.join(named)}{f', features {features}' * bool(features)}"
  if "KID" in scores:
    protocol = under(protocol, score, num_subsets=num_subsets, max_subset_size=max_subset_size, seed=seed)
  why = "no intervals: resampling features moves FID and KID away from their value; draw more pictures to see how it changes"
  return Score("fid", protocol, scores, counts=counts, notes=(*notes.lines(), why))


def _read(path: Path, name: str | None, notes: Notes) -> tuple[np.ndarray | None, tuple[np.ndarray, np.ndarray]]:
  """A file's features, where it has them, and their mean and covariance."""
  found = arrays.load(path, _WHAT)
  if name is None and {"mu", "sigma"} <= set(found):
    mean_D, covariance_DD = found["mu"], found["sigma"]
    shape = np.shape(covariance_DD)
    if mean_D.ndim != 1 or shape != (len(mean_D),) * 2 or {mean_D.dtype.kind, covariance_DD.dtype.kind} - set("fiu"):
      raise BadRequest(f"{path}: mu {list(mean_D.shape)} and sigma {list(shape)} aren't a mean and its covariance")
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
      raise BadRequest(f"{path}: mu and sigma hold numbers that aren't finite")
    return None, (mean_D, covariance_DD)
  if name is None:
    if len(found) != 1:
      raise BadRequest(f"{path} holds {len(found)} arrays ({', '.join(list(found)[:6])}): name one by array or reference_array")
    name = next(iter(found))
  if name not in found:
    raise BadRequest(f"{path} has no array {name!r}: it has {', '.join(list(found)[:6]) or 'none'}")
  features_ND = arrays.rows(path, found[name], name, _WHAT)
  n, d = features_ND.shape
  if n < 2:
    raise BadRequest(f"{path} has features of one picture: a covariance needs two, and a figure thousands")
  if n <= d:
    notes.say(f"{path.name}{f' {name}' * bool(name)}: {n:,} samples of {d:,} dimensions: FID is far from its value for many,"
              " and the square root of a singular covariance loses its last digits (about 1e-7)")  # fmt: skip
  if features_ND.dtype.kind != "f":
    features_ND = features_ND.astype(np.float64)
  return features_ND, mean_and_covariance(features_ND)


def mean_and_covariance(features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean, of the features' own kind, and the covariance (over N - 1), as float64."""
  with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is told by whoever asks
    return np.mean(features_ND, axis=0), np.atleast_2d(np.cov(features_ND, rowvar=False))


def frechet_distance(
    mean_a_D: np.ndarray, covariance_a_DD: np.ndarray, mean_b_D: np.ndarray, covariance_b_DD: np.ndarray
) -> float:
  """The Fréchet distance of two normal distributions; a set's from itself may be a little below 0, and isn't held at it.

  Raises:
    ValueError: if the square root isn't real.
  """
  root_DD = _square_root(covariance_a_DD @ covariance_b_DD)
  if not np.isfinite(root_DD).all():
    offset_DD = 1e-6 * np.eye(len(mean_a_D))
    root_DD = _square_root((covariance_a_DD + offset_DD) @ (covariance_b_DD + offset_DD))
  if not np.allclose(np.diagonal(root_DD).imag, 0, atol=1e-3):
    raise ValueError(f"the square root of the covariances' product isn't real (by {np.abs(root_DD.imag).max():.3g}), at which"
                     " clean-fid stops: more samples are needed")  # fmt: skip
  offset_D = mean_a_D - mean_b_D
  return float(offset_D @ offset_D + np.trace(covariance_a_DD) + np.trace(covariance_b_DD) - 2 * np.trace(root_DD.real))


def _square_root(product_DD: np.ndarray) -> np.ndarray:
  """scipy's, which says of a singular matrix that it is one: by print or a warning, by version."""
  from scipy import linalg  # takes a while to load, which other benchmarks needn't

  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    return np.asarray(linalg.sqrtm(product_DD))


def kernel_distance(
    a_ND: np.ndarray, b_MD: np.ndarray, *, num_subsets: int = 100, max_subset_size: int = 1000, seed: int = 0
) -> float:
  """The unbiased squared distance under a cubic kernel, a mean over subsets, as numpy.random.seed(seed) has them drawn."""
  rng = np.random.RandomState(seed)  # draws what the tool's global generator does, and leaves that one alone
  d, m = a_ND.shape[1], min(len(a_ND), len(b_MD), max_subset_size)
  total = 0.0
  for _ in range(num_subsets):
    b_SD = b_MD[rng.choice(len(b_MD), m, replace=False)]
    a_SD = a_ND[rng.choice(len(a_ND), m, replace=False)]
    within_SS = (b_SD @ b_SD.T / d + 1) ** 3 + (a_SD @ a_SD.T / d + 1) ** 3
    across_SS = (b_SD @ a_SD.T / d + 1) ** 3
    total += (within_SS.sum() - np.trace(within_SS)) / (m - 1) - 2 * across_SS.sum() / m
  return float(total / num_subsets / m)

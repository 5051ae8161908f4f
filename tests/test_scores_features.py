"""Scorers of embeddings and features against what the benchmarks' own tools made of them (tests/golden/benchmarks)."""

import json
from pathlib import Path

import numpy as np
import pytest

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import ip2p

GOLDEN = Path(__file__).parent / "golden" / "benchmarks"


def expected(name: str):
  return json.loads((GOLDEN / name / "expected.json").read_text())


def noted(score, words: str) -> str:
  """The one note that has these words."""
  (line,) = [n for n in score.notes if words in n]
  return line


# InstructPix2Pix

IP2P = GOLDEN / "ip2p" / "embeddings.npz"


def edited(tmp_path, **changed) -> Path:
  np.savez(tmp_path / "e.npz", **{k: v for k, v in (dict(np.load(IP2P)) | changed).items() if v is not None})
  return tmp_path / "e.npz"


def test_ip2p_every_figure_of_its_class():
  values = expected("ip2p")
  score = ip2p.score(IP2P, network="ViT-L/14")
  for name, mean in values["mean_over_samples"].items():
    assert score.scores[name] == pytest.approx(mean, abs=1e-6)
    assert [r[name] for r in score.rows] == pytest.approx([s[name] for s in values["per_sample"]], abs=1e-6)
    assert score.intervals[name][0] <= score.scores[name] <= score.intervals[name][1]
  assert [score.scores[k] for k in ("CLIP-T", "CLIP-I", "CLIP-D")] == [
      score.scores[k] for k in ("sim_1", "sim_image", "sim_direction")
  ]
  assert score.rows[1]["sim_direction"] == 0 and "(row 1)" in noted(score, "3 samples of no change in picture or caption")
  assert score.rows[3]["sim_image"] > 1 and "ViT-L/14" in score.protocol


def test_ip2p_an_embedding_of_zeros_is_nan_and_told(tmp_path):
  zeroed = dict(np.load(IP2P))["image_out"]
  zeroed[0] = 0
  score = ip2p.score(edited(tmp_path, image_out=zeroed))
  wanted = expected("ip2p")["output_embedding_all_zero_otherwise_sample_0"]
  assert {k: score.rows[0][k] for k in wanted} == pytest.approx(wanted, abs=1e-6)
  assert np.isnan(score.scores["sim_1"]) and not np.isnan(score.scores["sim_0"]) and "CLIP-T" not in score.intervals
  rest = [s["sim_1"] for s in expected("ip2p")["per_sample"][1:]]
  assert score.straight["CLIP-T"] == pytest.approx(np.mean(rest), abs=1e-6) and "(row 0)" in noted(score, "length 0")
  assert score.to_json()["scores"]["sim_1"] == "nan"


@pytest.mark.parametrize("changed, message", [
    ({"text_in": None}, "e.npz has no text_in"), ({"text_in": np.ones((5, 8))}, "must have one shape"),
    ({"text_in": np.ones(8)}, r"text_in is float64 \[8\]"), ({"text_in": np.array([["a"]])}, "text_in is <U1"),
    ({"text_in": np.full((6, 8), np.inf)}, "text_in: 6 of 6 rows hold numbers that aren't finite, first row 0"),
    ({"text_in": np.array([{}])}, "isn't a .npy or .npz file of numbers"), ({"text_in": np.ones((0, 8))}, r"float64 \[0, 8\]"),
])  # fmt: skip
def test_ip2p_embeddings_that_are_none(changed, message, tmp_path):
  with pytest.raises(BadRequest, match=message):
    ip2p.score(edited(tmp_path, **changed))


@pytest.mark.parametrize("data", [b"", b"x", b"PK\x03\x04", b"\x93NUMPY\x01\x00", None])
def test_ip2p_files_that_are_none(data, tmp_path):
  whole = IP2P.read_bytes()
  (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2] if data is None else data)
  with pytest.raises(BadRequest, match="e.npz isn't a .npy or .npz file of numbers"):
    ip2p.score(tmp_path / "e.npz")
  with pytest.raises(BadRequest, match="there is no file"):
    ip2p.score(tmp_path / "none.npz")

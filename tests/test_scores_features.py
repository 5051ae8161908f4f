"""Scorers of embeddings and features against what the benchmarks' own tools made of them (tests/golden/benchmarks)."""

import inspect
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from orthus_jax import cli
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import fid, fid_pictures, ip2p, registry

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


# FID

FID = GOLDEN / "fid"


def fid_of(a: str, b: str, **options):
  return fid.score(FID / "features.npz", array=a, reference_array=b, **options)


@pytest.mark.parametrize("pair", expected("fid")["fid_from_feats"])
def test_fid_of_its_tool(pair):
  score = fid_of(*pair.split(","))
  assert score.scores["FID"] == pytest.approx(expected("fid")["fid_from_feats"][pair]["value"], rel=1e-6, abs=1e-6)
  assert not score.intervals and "no intervals" in score.notes[-1]
  assert any("singular" in n for n in score.notes) == ("few" in pair)


@pytest.mark.parametrize("case", expected("fid")["kernel_distance"])
def test_kernel_distance_of_its_tool(case):
  a, b, options = case.split(",", 2)
  options = json.loads(options.replace("'", '"'))
  np.random.seed(5)
  assert fid_of(a, b, **options).scores["KID"] == pytest.approx(expected("fid")["kernel_distance"][case], rel=1e-6, abs=1e-6)
  drawn = np.random.rand()
  np.random.seed(5)
  assert drawn == np.random.rand()  # others' draws aren't touched


def test_fid_mean_and_covariance_as_the_tool_stores_them(tmp_path):
  wanted, features = expected("fid")["mean_and_covariance"]["a"], np.load(FID / "features.npz")
  mean_D, covariance_DD = fid.mean_and_covariance(features["a"])
  assert (str(mean_D.dtype), str(covariance_DD.dtype)) == (wanted["mu_dtype"], wanted["sigma_dtype"])
  np.testing.assert_allclose(mean_D, wanted["mu"], rtol=1e-6)
  np.testing.assert_allclose(covariance_DD, wanted["sigma"], rtol=1e-12)
  np.savez(tmp_path / "stats.npz", mu=mean_D, sigma=covariance_DD)
  np.save(tmp_path / "b.npy", features["b"])
  score = fid.score(tmp_path / "b.npy", reference=tmp_path / "stats.npz", network="inception_v3", features="spatial")
  assert score.scores == {"FID": fid_of("b", "a").scores["FID"]} and "no KID" in noted(score, "mu and sigma")
  assert "network inception_v3, weights not named, features spatial" in score.protocol


def test_fid_names_draws_that_are_not_its_tools():
  assert fid_of("a", "b").protocol.endswith("weights not named")
  assert fid_of("a", "b", num_subsets=2, seed=3).protocol.endswith("weights not named, with num_subsets 2, seed 3")


@pytest.mark.parametrize("changed, message", [
    ({"a": np.ones((9, 5)), "b": np.ones((9, 6))}, "5 dimensions and .* of 6: both"),
    ({"a": np.ones((1, 5))}, "of one picture"),
    ({"a": np.full((3, 2), np.nan)}, "3 of 3 rows hold numbers that aren't finite"),
    ({"a": np.ones(5)}, r"float64 \[5\] where"),
    ({"a": np.array([[1e300, 0], [-1e300, 1]])}, "f.npz"), ({"c": np.ones((9, 6))}, "f.npz has no array 'a': it has c"),
])  # fmt: skip
def test_fid_features_that_are_none(changed, message, tmp_path):
  np.savez(tmp_path / "f.npz", **changed)
  with np.errstate(all="ignore"), pytest.raises(BadRequest, match=message):
    fid.score(tmp_path / "f.npz", array="a", reference_array="b" if "b" in changed else "a")
  for options, words in (({}, "give the other's features"), ({"reference": FID / "features.npz"}, "holds 4 arrays"),
                         ({"array": "a", "reference_array": "b", "num_subsets": 0}, "one subset")):  # fmt: skip
    with pytest.raises(BadRequest, match=words):
      fid.score(FID / "features.npz", **options)


def check_pixels(pixels_HWC: np.ndarray, wanted: dict) -> None:
  assert (list(pixels_HWC.shape), str(pixels_HWC.dtype)) == (wanted["shape"], wanted["dtype"])
  for row, column, rgb in wanted["row_col_rgb"]:
    np.testing.assert_allclose(pixels_HWC[row, column], rgb, atol=0.001)
  assert pixels_HWC.sum(dtype=np.float64) == pytest.approx(wanted["sum_float64"], rel=1e-7)


@pytest.mark.parametrize("mode, key", [
    ("clean", "clean"), ("legacy_pytorch", "legacy_pytorch"), ("bytes", "not_clean_pil_bicubic_uint8"),
])  # fmt: skip
def test_fid_resizes_of_its_tool(mode, key):
  for name, wanted in expected("fid")[key].items():
    check_pixels(fid_pictures.resized(fid_pictures.read(FID / "images" / f"{name}.png"), mode), wanted)


def test_fid_pictures_of_every_kind_as_its_tool_reads_them():
  for name, wanted in expected("fid")["ResizeDataset_clean"].items():
    check_pixels(fid_pictures.resized(fid_pictures.read(FID / "modes" / name)), wanted)
  wanted = expected("fid")["clean_filter_at_5_wide_3_high"]
  small = fid_pictures.resized(fid_pictures.read(FID / "images" / f"{wanted['image']}.png"), size=(5, 3))
  np.testing.assert_allclose(small, wanted["values"], atol=0.001)
  pixels = fid_pictures.read(FID / "modes" / "rgb.png")
  assert fid_pictures.resized(pixels, "legacy_tensorflow") is pixels


def test_fid_files_that_its_tool_takes_of_a_folder(tmp_path):
  found = [p.relative_to(FID / "listing").as_posix() for p in fid_pictures.listed(FID / "listing")]
  assert found == expected("fid")["files_taken_from_folder_in_order"]
  odd = tmp_path / "[a]"
  odd.mkdir()
  with pytest.raises(BadRequest, match="has no picture whose name ends in bmp"):
    fid_pictures.listed(odd)
  for name, text in (("a.png", "no picture"), ("b.npy", "x")):
    (odd / name).write_text(text)
    with pytest.raises(BadRequest, match=f"{name} (can't be read|isn't)"):
      fid_pictures.read(odd / name)
  assert [p.name for p in fid_pictures.listed(odd)] == ["a.png", "b.npy"]
  np.save(odd / "b.npy", np.ones((4, 4)))
  with pytest.raises(BadRequest, match="no picture .height, width, 3."):
    fid_pictures.read(odd / "b.npy")
  with pytest.raises(BadRequest, match="no resize is called 'new'"):
    fid_pictures.resized(np.zeros((2, 2, 3), np.uint8), "new")


# The command


def test_the_command_scores_pictures_and_tells_of_each_benchmark(tmp_path, capsys):
  features = str(FID / "features.npz")
  for argv, words in (
      (["fid", features, "--array=a", "--reference-array=b", "--weights=w.pt"], ("FID  8.5551", "weights w.pt")),
      (["ip2p", str(IP2P)], ("CLIP-D         0.0725  [", "a CLIP that is not named")),
      (["wise", str(GOLDEN / "wise" / "verified")], ("overall    0.7000  [", "verified version")),
      (["dpg_bench", str(GOLDEN / "dpg_bench" / "result4.txt")], ("score                    47.92%", "straight reading 68.75")),
  ):  # fmt: skip
    assert cli.main(["score", *argv, f"--out={tmp_path / argv[0]}"]) == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in words), printed
    assert json.loads((tmp_path / argv[0] / "score.json").read_text())["benchmark"] == argv[0]
  for name in registry.BENCHMARKS:
    with pytest.raises(SystemExit):
      cli.main(["score", name, "--help"])
    assert "PATH" in capsys.readouterr().out and set(registry.module(name).OPTIONS) <= set(
        inspect.signature(registry.scorer(name)).parameters
    )


def test_no_jax_is_needed():
  code = (
      "import sys; from orthus_jax import cli; a = ['--array=a', '--reference-array=b'];"
      "assert cli.main(['score', 'fid', sys.argv[1], *a]) == cli.main(['score', 'dpg_bench', sys.argv[2]]) == 0;"
      "assert not {'jax', 'flax', 'torch'} & set(sys.modules)"
  )
  paths = [str(FID / "features.npz"), str(GOLDEN / "dpg_bench" / "result4.txt")]
  subprocess.run([sys.executable, "-c", code, *paths], check=True, stdout=subprocess.DEVNULL)

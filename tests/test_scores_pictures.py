"""Scorers of benchmarks of pictures against what the benchmarks' own tools made of the same files (tests/golden/benchmarks)."""

import hashlib
import json
from pathlib import Path
import shutil

import numpy as np
import PIL.Image
import pytest

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import geneval, geneval_rules

GOLDEN = Path(__file__).parent / "golden" / "benchmarks"
GENEVAL = GOLDEN / "geneval"


def expected(name: str):
  return json.loads((GOLDEN / name / "expected.json").read_text())


def noted(score, words: str) -> str:
  """The one note that has these words."""
  (line,) = [n for n in score.notes if words in n]
  return line


def write_lines(path: Path, rows) -> Path:
  path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
  return path


def read_lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


# GenEval


def printed(score) -> list[str]:
  """The tool's summary, in its words."""
  of = {t: [r["correct"] for r in score.rows if r["tag"] == t] for t in score.counts}
  tags = [t for t in score.scores if of[t]]
  return [
      "Summary", "=======", f"Total images: {score.counts['images']}", f"Total prompts: {score.counts['prompts']}",
      f"% correct images: {score.scores['images']:.2%}", f"% correct prompts: {score.scores['prompts']:.2%}", "",
      "Task breakdown", "==============",
      *(f"{t:<16} = {score.scores[t]:.2%} ({sum(of[t])} / {len(of[t])})" for t in tags), "",
      f"Overall score (avg. over tasks): {score.scores['Overall']:.5f}", "",
  ]  # fmt: skip


@pytest.mark.parametrize("case", [k for k, v in expected("geneval").items() if isinstance(v, dict)])
def test_geneval_rows_and_summary_of_its_tool(case):
  values = expected("geneval")
  options = dict(o.split("=") for o in values[case]["options"])
  options = {k: int(v) if k == "max_objects" else float(v) for k, v in options.items()}
  score = geneval.score(GENEVAL / "images", detections=GENEVAL / "detections.json", **options)
  rows = {r["filename"]: r for r in [*values["default"]["rows"], *values[case].get("rows_that_differ_from_default", [])]}
  assert list(score.rows) == list(rows.values())
  assert printed(score) == values[case]["summary_printed"]


def test_geneval_summary_of_its_tools_rows():
  score = geneval.score(GENEVAL / "results.jsonl")
  assert printed(score) == expected("geneval")["default"]["summary_printed"] and not score.straight
  assert geneval.score(GENEVAL) == score
  for name in score.scores:
    low, high = score.intervals[name]
    assert low <= score.scores[name] <= high
  assert score.intervals["two_object"] == (0.25, 0.25)  # of one prompt
  assert "two_object 1 of 99" in noted(score, "553") and noted(score, "pictures a prompt: 4, 5")


def test_geneval_relations_and_overlaps_of_its_tool():
  for case in expected("geneval")["relative_position"]:
    boxes = [np.asarray(case[k], np.float32) for k in "ab"]
    assert sorted(geneval_rules.relations(*boxes)) == case["relations_of_a_to_b"], case
  for case in expected("geneval")["compute_iou"]:
    boxes = [np.asarray(case[k], np.float32) for k in "ab"]
    assert geneval_rules.overlap(*boxes) == pytest.approx(case["iou"], abs=1e-12), case


def test_geneval_crops_that_its_colour_classifier_sees():
  known = json.loads((GENEVAL / "detections.json").read_text())
  for case in expected("geneval")["default"]["crops_seen_by_the_colour_classifier"]:
    image = PIL.Image.open(GENEVAL / "images" / case["file"])
    (found,) = [o for o in known[case["file"]]["objects"] if np.allclose(o["bbox"], case["box"][:4])]
    x0, y0 = (max(int(v), 0) for v in found["bbox"][:2])
    x1, y1 = (int(np.ceil(v)) for v in found["bbox"][2:])
    mask_HW = np.zeros((64, 64), bool)
    mask_HW[y0:y1, x0 : (x0 + x1) // 2 if found.get("mask") == "half" else x1] = True
    crop = geneval_rules.color_crop(image, case["box"][:4], mask_HW)
    assert list(crop.size) == case["crop_size"], case["file"]
    assert hashlib.sha256(crop.tobytes()).hexdigest() == case["crop_sha256_of_rgb_bytes"], case["file"]


def test_geneval_pictures_and_lines_that_are_not_as_they_should_be_are_noted(tmp_path):
  folder = tmp_path / "images"
  shutil.copytree(GENEVAL / "images", folder)
  (folder / "00002/samples/0003.png").unlink()
  known = json.loads((GENEVAL / "detections.json").read_text())
  del known["00005/samples/0001.png"]["objects"][0]["color"]
  (tmp_path / "found.json").write_text(json.dumps(known))
  prompts = [{"prompt": f"a photo of a {name}"} for name in ("kite", "cow")]
  listed = write_lines(tmp_path / "evaluation_metadata.jsonl", prompts)
  score = geneval.score(folder, detections=tmp_path / "found.json", metadata=listed)
  assert "00002/samples/0003.png" in noted(score, "1 pictures with detections aren't there")
  assert "00005/samples/0001.png" in noted(score, "1 things without a color where one is asked for, taken for red")
  assert "evaluation_metadata.jsonl:2 (a photo of a cow)" in noted(score, "1 prompts of the benchmark have no picture")
  assert "notes" in noted(score, "1 folders whose names aren't numbers")
  assert score.rows[21]["correct"]  # all colours alike: the first, red

  rows = read_lines(GENEVAL / "results.jsonl")
  twice = [*rows, rows[0] | {"correct": False}, rows[5] | {"tag": "other", "metadata": "{}", "filename": "x"}]
  score = geneval.score(write_lines(tmp_path / "twice.jsonl", twice))
  assert "twice.jsonl:42 (images/00000/samples/0000.png)" in noted(score, "1 pictures that stand there already")
  assert score.scores["single_object"] == 0.5 and score.straight["single_object"] == 4 / 9
  assert noted(score, "tags that GenEval hasn't").endswith(": other")


@pytest.mark.parametrize(
    "rows, message",
    (
        (["{}"], "results.jsonl:1: no 'filename' .*GenEval's results.jsonl has filename, tag"),
        (['{"filename": "a", "tag": "colors"'], "results.jsonl:1: broken JSON"),
        ([], "holds no line: GenEval's"),
        (["[1]"], "results.jsonl:1: holds a list where an object"),
        ([{"filename": "a", "tag": "t", "prompt": "p", "metadata": "m", "correct": "True"}], "1: 'correct' is 'True'"),
        ([{"filename": "a", "tag": "t", "prompt": "p", "metadata": "m", "correct": 3}], "1: 'correct' is 3, neither"),
        ([{"filename": "a", "tag": t, "prompt": "p", "metadata": "m", "correct": True} for t in "tu"], ":2: tag 'u', but 't'"),
    ),
)
def test_geneval_results_that_are_none(rows, message, tmp_path):
  with pytest.raises(BadRequest, match=message):
    geneval.score(write_lines(tmp_path / "results.jsonl", rows))


@pytest.mark.parametrize(
    "found, message",
    (
        ({"objects": [{"bbox": [0, 0, 1, 1]}]}, "what was found in 00001/samples/0000.png .*'class' is missing"),
        ({"objects": [{"class": "kite", "bbox": [0, 0, 1]}]}, "bbox is .0, 0, 1., not x0, y0, x1, y1"),
        ({"objects": [{"class": "kite", "bbox": "abcd"}]}, "isn't a list of class, bbox and score"),
        ({}, "isn't a list of class, bbox and score"),
        (3, "isn't a list of class, bbox and score"),
        (["kite"], "isn't a list of class, bbox and score"),
        (None, "has no detections of 00001/samples/0000.png"),
    ),
)
def test_geneval_detections_that_are_none(found, message, tmp_path):
  known = json.loads((GENEVAL / "detections.json").read_text())
  known["00001/samples/0000.png"] = found
  if found is None:
    del known["00001/samples/0000.png"]
  (tmp_path / "found.json").write_text(json.dumps(known))
  with pytest.raises(BadRequest, match=message):
    geneval.score(GENEVAL / "images", detections=tmp_path / "found.json")


@pytest.mark.parametrize(
    "name, text, message",
    (
        ("metadata.jsonl", "{", "metadata.jsonl:1: broken JSON"),
        ("metadata.jsonl", "[]", "holds a list where an object"),
        ("metadata.jsonl", '{"tag": "colors"}', "no 'prompt'"),
        ("metadata.jsonl", '{"tag": "t", "prompt": "p", "include": [{"class": "a", "count": "1"}]}', "no number from 1"),
        ("metadata.jsonl", '{"tag": "t", "prompt": "p", "include": [{"class": "a", "count": 1, "position": ["above", 0]}]}',
         "doesn't come before"),
        ("metadata.jsonl", None, "00000 has no metadata.jsonl, on which"),
        ("samples", None, "00000 has no samples, on which"),
    ),
)  # fmt: skip
def test_geneval_folders_at_which_its_tool_stops(name, text, message, tmp_path):
  shutil.copytree(GENEVAL / "images/00000", tmp_path / "images/00000")
  target = tmp_path / "images/00000" / name
  if text is not None:
    target.write_text(text)
  elif target.is_dir():
    shutil.rmtree(target)
  else:
    target.unlink()
  with pytest.raises(BadRequest, match=message):
    geneval.score(tmp_path / "images", judge=lambda pixels: [])

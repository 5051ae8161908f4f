"""Scorers of benchmarks of pictures against what the benchmarks' own tools made of the same files (tests/golden/benchmarks)."""

import hashlib
import json
import os
from pathlib import Path
import re
import shutil

from hypothesis import given, settings, strategies as st
import numpy as np
import PIL.Image
import pytest

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import dpg_bench, dpg_bench_files, geneval, geneval_rules, gqa, registry, wise, wise_judge

GOLDEN = Path(__file__).parent / "golden" / "benchmarks"
EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "100"))
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


def test_geneval_rules_that_are_not_its_tools_are_named():
  how = {"detections": GENEVAL / "detections.json"}
  assert geneval.score(GENEVAL / "images", **how, threshold=0.3).protocol == geneval.PROTOCOL
  other = geneval.score(GENEVAL / "images", **how, threshold=0.5, max_objects=8)
  assert other.protocol == f"{geneval.PROTOCOL}, with threshold 0.5, max_objects 8"


@pytest.mark.parametrize("score, path, options, message", [
    (geneval.score, GENEVAL, {"threshold": 0.5}, "threshold=0.5 goes with judge or detections: give that too, or leave it out"),
    *((geneval.score, GENEVAL, {f"{k}_threshold": 0.5}, f"{k}_threshold=0.5 goes with") for k in ("counting", "position")),
    *((geneval.score, GENEVAL, {f"max_{k}": 1.5}, f"max_{k}=1.5 goes with") for k in ("objects", "overlap")),
    (dpg_bench.score, GOLDEN / "dpg_bench/result4.txt", {"resolution": 8}, "resolution=8 goes with judge"),
    (gqa.score, GOLDEN / "gqa", {"map_size": 3}, "map_size=3 goes with grounding"),
    (gqa.score, GOLDEN / "gqa", {"scenes": "a.json"}, "scenes=a.json goes with grounding"),
    (gqa.score, GOLDEN / "gqa", {"attentions": "a.json"}, "attentions=a.json goes with grounding"),
])  # fmt: skip
def test_options_that_change_nothing_are_refused(score, path, options, message):
  with pytest.raises(BadRequest, match=message):
    score(path, **options)


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
        ({"objects": [{"bbox": [0, 0, 1, 1]}]}, "found.json: what was found in 00001/samples/0000.png .*'class' is missing"),
        ({"objects": [{"class": "kite", "bbox": [0, 0, 1]}]}, "bbox is .0, 0, 1., not x0, y0, x1, y1"),
        ({"objects": [{"class": "kite", "bbox": "abcd"}]}, "isn't a list of class, bbox and score"),
        ({"objects": [{"class": "kite", "bbox": [0, 0, 1, 10**400]}]}, "isn't a list of class, bbox and score: int too large"),
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


def test_geneval_prompts_without_a_picture_and_folders_without_any(tmp_path):
  shutil.copytree(GENEVAL / "images", tmp_path / "images", ignore=shutil.ignore_patterns("notes"))
  for picture in (tmp_path / "images/00001/samples").iterdir():
    picture.unlink()
  score = geneval.score(tmp_path / "images", detections=GENEVAL / "detections.json")
  assert "00001" in noted(score, "1 prompts without a picture, left out") and len(score.rows) == 37
  for home in (tmp_path / "images").iterdir():
    shutil.rmtree(home)
  with pytest.raises(BadRequest, match="images has no NNNNN/samples/NNNN.png"):
    geneval.score(tmp_path / "images", judge=lambda pixels: [])
  with pytest.raises(BadRequest, match="images has no results.jsonl: give --judge or --detections"):
    geneval.score(tmp_path / "images")


@pytest.mark.parametrize("judge, message", [
    ("no_such_module:find", "can't be loaded: No module"), ("os:no_such_function", "can't be loaded: module 'os' has no"),
    ("os", "can't be loaded: "), ("os:name", "--judge=os:name is 'posix', which can't be called"),
])  # fmt: skip
def test_judges_that_are_none(judge, message):
  for score in (lambda: geneval.score(GENEVAL / "images", judge=judge),
                lambda: dpg_bench.score(DPG / "images", csv=DPG / "dpg_bench.csv", judge=judge)):  # fmt: skip
    with pytest.raises(BadRequest, match=message):
      score()


def test_a_judge_that_fails_is_told_with_its_picture():
  def judge(*_):
    raise ZeroDivisionError("no such thing\nand more")

  said = r"the judge fails on \S+png: ZeroDivisionError: no such thing \(--debug shows where\)"
  for score in (lambda: geneval.score(GENEVAL / "images", judge=judge),
                lambda: dpg_bench.score(DPG / "images", csv=DPG / "dpg_bench.csv", judge=judge)):  # fmt: skip
    with pytest.raises(BadRequest, match=said):
      score()


# DPG-Bench

DPG = GOLDEN / "dpg_bench"
DPG_CASES = {
    "grid_of_4": ("result4", "dpg_bench"), "one_picture": ("result1", "dpg_bench"),
    "grid_of_4_no_extra_row": ("result4_no_extra_row", "dpg_bench_no_extra_row"),
}  # fmt: skip


def dpg_case(case: str, **options):
  result, csv = DPG_CASES[case]
  return dpg_bench.score(DPG / f"{result}_detail.txt", csv=DPG / f"{csv}.csv", **options)


def under(figures, start: str) -> dict:
  return {k.removeprefix(start): v for k, v in figures.items() if k.startswith(start)}


def check_dpg(score, case: str) -> None:
  values = expected("dpg_bench")[case]
  assert score.scores["score"] == values["score"]
  assert (under(score.scores, "L1/"), under(score.scores, "L2/")) == (values["L1"], values["L2"])
  rows = {f"images/{Path(r['picture']).name}": {k: r[k] for k in ("grid_scores", "average")} for r in score.rows}
  assert rows == values["per_image"]


@pytest.mark.parametrize("case", DPG_CASES)
def test_dpg_every_figure_of_its_tool(case):
  check_dpg(dpg_case(case), case)
  result, csv = DPG_CASES[case]
  check_dpg(dpg_bench.score(DPG / f"{result}.txt", csv=DPG / f"{csv}.csv"), case)  # its details lie beside it


def test_dpg_a_straight_reading_of_the_same_answers():
  score = dpg_case("grid_of_4")
  # The drum's strap: yes in quarters 2 and 4 as answered, and in the second, "Yes", it isn't; parents leave the last alone.
  assert score.straight["L2/entity - part"] == 25 and score.straight["L2/relation - spatial"] == 0
  assert "categories from all quarters after parents were applied" in noted(score, "straight reading")
  assert score.intervals["score"][0] <= score.scores["score"] <= score.intervals["score"][1]
  assert "drum.png" in noted(score, '5 answers that are "yes" but for case')
  failed = dpg_case("grid_of_4_no_extra_row")
  assert "lamp_on_crate.png, question 1" in noted(failed, "1 pictures fail in the tool")
  assert "lamp_on_crate.png" in noted(failed, "asked not all their questions")


@pytest.mark.parametrize("case", DPG_CASES)
def test_dpg_pictures_asked_about_by_a_judge(case):
  result, csv = DPG_CASES[case]
  known = {}
  for line in (DPG / f"{result}_detail.txt").read_text().splitlines():
    picture, box, rest = re.fullmatch(r"images/(\S+), \((.*?)\), (.*)", line).groups()
    question, _, answer = rest.rpartition(", ")
    quarter = PIL.Image.open(DPG / "images" / picture).convert("RGB").crop(tuple(map(int, box.split(", "))))
    known[quarter.tobytes(), question] = answer

  def judge(pixels_HWC, question):
    return known.get((pixels_HWC.tobytes(), question), "no")

  score = dpg_bench.score(DPG / "images", csv=DPG / f"{csv}.csv", judge=judge, resolution=8,
                          pic_num=1 if case == "one_picture" else 4)  # fmt: skip
  check_dpg(score, case)
  if case == "grid_of_4_no_extra_row":  # read straight, the first line is a question; this judge answers no to it
    assert score.straight["L2/relation - spatial"] == 0 and score.straight["score"] == pytest.approx(100 * (0.5 + 0.5) / 3)


def test_dpg_parents_in_the_files_order_and_read_straight():
  questions = {n: dpg_bench_files.Question("?", p, "entity - whole") for n, p in ((1, (2,)), (2, (3,)), (3, (0,)))}
  answers = {1: "yes", 2: "yes", 3: "no"}
  assert dpg_bench_files.after_parents(questions, answers) == {1: 1, 2: 0, 3: 0}
  assert dpg_bench_files.straight_after_parents(questions, answers) == {1: 0, 2: 0, 3: 0}


def dpg_changed(tmp_path, *, csv=lambda t: t, detail=lambda t: t):
  (tmp_path / "dpg_bench.csv").write_text(csv((DPG / "dpg_bench.csv").read_text()))
  (tmp_path / "result_detail.txt").write_text(detail((DPG / "result4_detail.txt").read_text()))
  return dpg_bench.score(tmp_path)


def test_dpg_a_straight_reading_heeds_parents_that_come_later_in_the_file(tmp_path):
  score = dpg_changed(tmp_path, csv=lambda t: t.replace(",,2,1,other", ",,2,3,other"))
  # Question 2's parent is 3, whose parent is 1; where 1 is no, the tool lets 2 stand.
  assert score.rows[2]["grid_scores"] == [0.8, 0.4, 0.2, 0.4] and score.straight["L2/other - count"] == 25


def test_dpg_partial_doubled_and_unknown_pictures_are_named(tmp_path):
  whole = dpg_changed(tmp_path).scores
  partial = dpg_changed(tmp_path, detail=lambda t: t[: t.index("Is this a flat drawing?, no\nimages/two_kites.png, (8, 0")])
  assert "two_kites.png" in noted(partial, "1 pictures lack answers") and partial.counts["score"] == 2
  assert partial.notes[1].startswith("a partial result: 1 pictures lack answers")
  assert "result_detail.txt:37: the last line is broken off" in partial.notes[0]
  none = dpg_changed(tmp_path, detail=lambda t: "".join(x for x in t.splitlines(True) if "two_kites" not in x))
  assert "two_kites" in noted(none, "1 of 3 items have no picture") and none.notes[0].startswith("a partial result")
  twice = dpg_changed(tmp_path, detail=lambda t: t.replace(", yes", ", no") + t)
  assert twice.scores == whole and "2 times" in noted(twice, "3 pictures answered more than once")
  unknown = dpg_changed(tmp_path, detail=lambda t: t + "images/x.png, (0, 0, 8, 8), Is it?, yes\n")
  assert unknown.scores == whole and "images/x.png" in noted(unknown, "CSV has no such item")


@pytest.mark.parametrize("change, message", [
    ({"csv": lambda t: t.replace("tuple,", "", 1)}, "dpg_bench.csv:1: no column tuple"),
    ({"csv": lambda t: t.replace(",4,1,attribute", ",x,1,attribute")}, "dpg_bench.csv:15: proposition_id"),
    ({"csv": lambda t: t + "drum,x\n"}, "dpg_bench.csv:16: has no proposition_id"),
    ({"csv": lambda t: t + "drum,x,,5,0,a,b,c - d (e),What?,more\n"}, "dpg_bench.csv:16: has more columns"),
    ({"csv": lambda t: t.replace("Is there a drum?", "Is there a fife?")}, "result_detail.txt:1: .*question 1"),
    ({"detail": lambda t: t.replace("(0, 0, 8, 8), ", "", 1)}, "result_detail.txt:1: isn't a picture"),
    ({"detail": lambda t: t.splitlines(True)[0] + t}, "result_detail.txt:3: 'Is there a drum\\?, no'|result_detail.txt:2: "),
    ({"detail": lambda t: ""}, "not one picture has all its answers: a partial result: 3 of 3 items"),
])  # fmt: skip
def test_dpg_files_that_are_none(change, message, tmp_path):
  with pytest.raises(BadRequest, match=message):
    dpg_changed(tmp_path, **change)


# WISE

WISE = GOLDEN / "wise"
WISE_FILES = {"culture": "cultural_common_sense", "space-time": "spatio-temporal_reasoning", "science": "natural_science"}


def wise_file(version: str, category: str) -> Path:
  return WISE / version / f"{WISE_FILES[category]}{'_verified' * (version == 'verified')}_scores.jsonl"


@pytest.mark.parametrize("version", ["legacy", "verified"])
def test_wise_every_figure_of_its_tools(version):
  values = expected("wise")[version]
  whole = wise.score(WISE / version)
  assert whole.scores == pytest.approx(values["all_three"]["unrounded"] | {"overall": values["all_three"]["overall_unrounded"]})
  assert f"WISE's {version} version" in whole.protocol and not whole.notes and not whole.straight
  assert whole.intervals["overall"][0] < whole.scores["overall"] < whole.intervals["overall"][1]
  for category in WISE_FILES:
    part = wise.score(wise_file(version, category), category=category)
    wanted = values[f"{category}_only"]["categories"]
    assert {k: {"printed": f"{v:.2f}", "samples": part.counts[k]} for k, v in part.scores.items()} == wanted
  for case in expected("wise")["judge_text"]:
    assert wise_judge.judge_scores(case["text"], version) == case[version], case


@pytest.mark.parametrize("text, legacy, verified", [
    ("2\n1\n0", {"consistency": 2, "realism": 1, "aesthetic_quality": 0}, {}), (" 1 ", {}, {"score": 1}), ("1\n0", {}, {}),
    ("Consistency: 0\nso Consistency 2.5\n2\n1\n0", {"consistency": 2}, {}), ("**Score** 0, score: 1", {}, {"score": 0}),
    ("Realism: 12, Score: 12", {"realism": 1}, {}),
])  # fmt: skip
def test_wise_judges_texts_without_names_or_with_several(text, legacy, verified):
  assert wise_judge.judge_scores(text, "legacy") == legacy
  assert wise_judge.judge_scores(text) == verified


def test_wise_parts_of_a_result(tmp_path):
  for category in ("culture", "space-time"):
    shutil.copy(wise_file("legacy", category), tmp_path)
  with pytest.raises(BadRequest, match="300 of the 1,000 prompts of all are missing: 701, 702, 703, …"):
    wise.score(tmp_path)
  two = wise.score(tmp_path, category="culture")
  wanted = expected("wise")["legacy"]["two_files_category_culture"]["categories"]
  assert {k: {"printed": f"{v:.2f}", "samples": two.counts[k]} for k, v in two.scores.items()} == wanted
  rows = [r for r in read_lines(wise_file("legacy", "culture")) if r["prompt_id"] != 17]
  file = write_lines(tmp_path / "short_scores.jsonl", rows)
  with pytest.raises(BadRequest, match="short_scores.jsonl: 1 of the 400 prompts of culture are missing: 17;"):
    wise.score(file, category="culture")


def test_wise_files_are_told_by_what_they_hold(tmp_path):
  names = ("cultural_common_sense_scores_results", "spatio-temporal_reasoning_results", "natural_science_scores")
  for name, category in zip(names, WISE_FILES):
    shutil.copy(wise_file("legacy", category), tmp_path / f"{name}.jsonl")
  write_lines(tmp_path / "science_full_results.jsonl", ["[1]", {"prompt_id": 701, "evaluation": "Consistency: 2"}])
  wanted = wise.score(WISE / "legacy")
  for _ in range(2):  # the second time the first one's rows lie there
    score = wise.score(tmp_path)
    assert score.scores == wanted.scores and score.counts == wanted.counts
    assert "science_full_results.jsonl" in noted(score, "files that are no scores of WISE's judges, passed over")
    write_lines(tmp_path / "rows.jsonl", score.rows)
  for path in tmp_path.iterdir():
    path.write_text("{}")
  with pytest.raises(BadRequest, match=r"holds 5 \*.jsonl, none of them scores of WISE's judges: name"):
    wise.score(tmp_path)


def test_wise_another_versions_files(tmp_path):
  for version, other in (("legacy", "verified"), ("verified", "legacy")):
    with pytest.raises(BadRequest, match=f"scores.jsonl:1: has the scores of WISE's {other} version, and none of"):
      wise.score(WISE / other, version=version)
  mixed = write_lines(tmp_path / "m_scores.jsonl", [*read_lines(wise_file("legacy", "culture")), {"prompt_id": 1, "score": 1}])
  with pytest.raises(BadRequest, match="m_scores.jsonl:401: has the scores of WISE's verified version"):
    wise.score(mixed, category="culture")
  chosen = wise.score(mixed, category="culture", version="legacy")
  assert chosen.counts == {"CULTURE": 400} and "m_scores.jsonl:401" in noted(chosen, "1 prompts whose scores aren't numbers")


def test_wise_lines_that_are_not_as_they_should_be(tmp_path):
  rows = read_lines(wise_file("verified", "culture"))
  plain = wise.score(wise_file("verified", "culture"), category="culture")
  odd = [rows[0] | {"score": 1 - rows[0]["score"]}, "{", rows[0] | {"prompt_id": "1"}, rows[0] | {"score": 0.5},
         rows[0] | {"prompt_id": 2000}, rows[0] | {"prompt_id": True, "score": False}]  # fmt: skip
  score = wise.score(write_lines(tmp_path / "x_scores.jsonl", [*rows, *odd]), category="culture")
  right = round(plain.scores["CULTURE"] * 400)
  assert score.scores["CULTURE"] == (right + 1 - rows[0]["score"]) / 402  # doubled ids are averaged, true is 1
  assert score.straight["CULTURE"] == pytest.approx((right - rows[0]["score"] + 1 / 3) / 400)
  for words, line in (("aren't JSON", 402), ("no whole number", 403), ("other than 0 and 1", 404), ("WISE doesn't have", 405)):
    assert f"x_scores.jsonl:{line}" in noted(score, words)
  assert "x_scores.jsonl:401 (prompt 1), x_scores.jsonl:406" in noted(score, "2 second lines of a prompt")


LEGACY_LINE = '{"prompt_id": 1, "consistency": %s, "realism": 1, "aesthetic_quality": 1}'


@pytest.mark.parametrize("line, message", [
    ("[1]", ":401: isn't an object"), (LEGACY_LINE % "NaN", ":401: the scores make no finite number"),
    (LEGACY_LINE % ("1" + "0" * 400), ":401: the scores make no finite number"),
])  # fmt: skip
def test_wise_lines_that_are_none(line, message, tmp_path):
  rows = [*read_lines(wise_file("legacy", "culture")), line]
  with pytest.raises(BadRequest, match=f"x_scores.jsonl{message}"):
    wise.score(write_lines(tmp_path / "x_scores.jsonl", rows), category="culture")
  for bad in ({"version": "new"}, {"category": "art"}):
    with pytest.raises(BadRequest, match="WISE has no"):
      wise.score(WISE / "legacy", **bad)
  with pytest.raises(BadRequest, match="no line has a score of WISE's"):
    wise.score(write_lines(tmp_path / "x_scores.jsonl", [{"prompt_id": 1}]))


# Files of any content

HARMED = [
    ("dpg_bench", "dpg_bench.csv", "result4_detail.txt", {}), ("dpg_bench", "result4_detail.txt", "result4_detail.txt", {}),
    ("wise", "legacy/short_scores.jsonl", "legacy/short_scores.jsonl", {"category": "culture"}),
    ("wise", "verified/short_scores.jsonl", "verified/short_scores.jsonl", {"category": "culture"}),
    ("geneval", "results.jsonl", "results.jsonl", {}), ("ip2p", "embeddings.npz", "embeddings.npz", {}),
    ("geneval", "detections.json", "images", {"detections": "detections.json"}),
    ("geneval", "images/00007/metadata.jsonl", "images", {"detections": "detections.json"}),
    ("fid", "features.npz", "features.npz", {"array": "a", "reference_array": "b", "num_subsets": 1}),
]
MADE = [b"", b"\n", b"\t", b"\xff", b"\r", b"yes", b"{}", b"\x00", b'"', b", ", b"null", b"1e999", b"-1", b"0", b"[", b"'",
        b"9" * 400]  # fmt: skip


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
  folder = tmp_path_factory.mktemp("golden") / "benchmarks"
  shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("gqa", "mm*", "pope", "vqav2", "modes"))
  for version in ("legacy", "verified"):
    shutil.copy(wise_file(version, "culture"), folder / "wise" / version / "short_scores.jsonl")
  return folder


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_no_content_of_a_file_is_a_traceback(copies, data):
  name, file, path, options = data.draw(st.sampled_from(HARMED))
  file = copies / name / file
  original = file.read_bytes()
  i = data.draw(st.integers(0, len(original)))
  j = min(i + data.draw(st.sampled_from([0, 1, 3, 20, len(original)])), len(original))
  try:
    file.write_bytes(original[:i] + data.draw(st.sampled_from(MADE)) + original[j:])
    options = {k: copies / name / v if k == "detections" else v for k, v in options.items()}
    score = registry.scorer(name)(copies / name / path, **options)
    json.dumps(score.to_json(), allow_nan=False)
    json.dumps(score.rows, allow_nan=False)
    assert all("\n" not in n for n in score.notes)
  except BadRequest as e:
    assert str(copies / name) in str(e) and "\n" not in str(e)
  finally:
    file.write_bytes(original)

"""Scorers of benchmarks of answers against what the benchmarks' own tools made of the same files (tests/golden/benchmarks)."""

import copy
import errno
import json
import os
from pathlib import Path
import random
import re
import shutil
import subprocess
import sys

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

import orthus_jax as oj
from orthus_jax import cli
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import gqa, mme, mmmu, pope, reading, vqav2, vqav2_normalise

GOLDEN = Path(__file__).parent / "golden" / "benchmarks"
EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "100"))
VQA = GOLDEN / "vqav2" / "v2_OpenEnded_mscoco_val2014_syn_results.json"
ANNOTATIONS = GOLDEN / "vqav2" / "v2_mscoco_val2014_annotations.json"


def expected(name: str):
  return json.loads((GOLDEN / name / "expected.json").read_text())


def noted(score, words: str) -> str:
  """The one note that has these words."""
  (line,) = [n for n in score.notes if words in n]
  return line


# MME


def check_mme(score, subtask: str, figures: dict) -> None:
  for name, value in figures.items():
    assert score.scores[subtask if name == "score" else f"{subtask}/{name}"] == value, (subtask, name)


def mme_case(case: str, folder: Path) -> Path:
  shutil.copytree(GOLDEN / "mme" / "results", folder)
  shutil.copy(GOLDEN / "mme" / case / "existence.txt", folder)
  return folder


def test_mme_every_figure_of_its_tool():
  values = expected("mme")["results"]
  score = mme.score(GOLDEN / "mme" / "results")
  for subtask, figures in values["subtasks"].items():
    check_mme(score, subtask, figures)
  assert {k: score.scores[k] for k in values["totals"]} == values["totals"]
  for answer in values["parsed_answers"]:
    assert mme.parse(answer["answer_as_read"]) == answer["parsed"], answer


@pytest.mark.parametrize("case", ["two_blank_lines_at_end", "gt_lower", "crlf", "all_other"])
def test_mme_odd_files_that_its_tool_scores(case, tmp_path):
  values = expected("mme")[case]
  values = values.get("with scikit-learn 1.2.2", values)
  score = mme.score(mme_case(case, tmp_path / "results"))
  check_mme(score, "existence", values["existence"])
  assert {k: score.scores[k] for k in values["totals"]} == values["totals"]
  if case == "two_blank_lines_at_end":
    assert score.straight["existence"] == 200 and "existence.txt:13" in noted(score, "2 blank lines")
  if case == "all_other":
    assert "existence.txt" in noted(score, "scikit-learn 1.3 or later the tool stops")


@pytest.mark.parametrize("case, line", [("odd_lines", 11), ("one_blank_line_at_end", 13), ("gt_with_space", 1)])
def test_mme_files_at_which_its_tool_stops(case, line, tmp_path):
  with pytest.raises(BadRequest, match=f"existence.txt:{line}: "):
    mme.score(mme_case(case, tmp_path / "results"))


def test_mme_lines_without_four_columns_are_counted_and_read_straight():
  score = mme.score(GOLDEN / "mme" / "results")
  assert "numerical_calculation.txt:1" in noted(score, "4 lines without four columns")
  # 12 questions: 11 counted, 10 right, and "Yes<tab>because it is there", which is right too.
  assert score.straight["numerical_calculation"] == pytest.approx(100 * 11 / 12 + 100 * 5 / 6)
  # 12 questions: 9 counted, 8 right, three without an answer.
  assert score.straight["text_translation"] == pytest.approx(100 * 8 / 12 + 100 * 3 / 6)


def test_mme_intervals_are_of_pictures_within_their_subtask():
  score = mme.score(GOLDEN / "mme" / "results")
  assert score.intervals["existence"] == (200, 200)  # all right
  for name, (low, high) in score.intervals.items():
    assert low <= score.scores[name] <= high, name


def test_mme_pairs_of_two_pictures_are_told(tmp_path):
  folder = shutil.copytree(GOLDEN / "mme" / "results", tmp_path / "results")
  text = (folder / "count.txt").read_text()
  (folder / "count.txt").write_text("other.jpg" + text[text.index("\t") :])
  assert "count.txt:1" in noted(mme.score(folder), "name two pictures")


# POPE

POPE = ("TP", "FP", "TN", "FN", "accuracy", "precision", "recall", "f1", "yes_ratio")


def check_pope(score, split: str, values: dict) -> None:
  for name in POPE:
    if name in values:
      assert score.scores[f"{split}/{name}"] == values[name], (split, name)


@pytest.mark.parametrize("form", ["own", "llava"])
def test_pope_every_figure_of_its_tools(form):
  folder = GOLDEN / "pope"
  how = {"labels": folder / "labels", "questions": folder / "llava_pope_test.jsonl"}
  score = pope.score(folder) if form == "own" else pope.score(folder / "llava_answers.jsonl", **how)
  for split in ("random", "popular", "adversarial"):
    values = expected("pope")["evaluate.py"][split]
    check_pope(score, split, values)
    assert [r["parsed"] for r in score.rows if r["split"] == split] == values["parsed"]
    low, high = score.intervals[f"{split}/f1"]
    assert low <= values["f1"] <= high
  assert score.scores["mean/accuracy"] == pytest.approx((0.45 + 0.375 + 0.375) / 3)
  assert "random 20, popular 24" in noted(score, "questions by split")
  assert not score.straight


@pytest.mark.parametrize("case", ["fewer_answers", "more_answers", "all_no", "label_case", "no_positive_label"])
def test_pope_odd_files(case):
  cases = GOLDEN / "pope" / "cases"
  values = expected("pope")["evaluate.py"][case]
  score = pope.score(cases / f"{case}_answers.json", labels=cases / f"{case}_labels.json")
  check_pope(score, case, values)
  if values["error"]:  # the tool divides by zero
    assert np.isnan(score.scores[f"{case}/f1"]) and score.straight[f"{case}/accuracy"] in (0.625, 0.5)
    noted(score, "stops at a division by zero")
  elif case == "label_case":
    assert "label_case_labels.json:6 (No)" in noted(score, "3 labels that are no but for case")
    assert score.straight["label_case/TP"] == values["TP"] - 3
  else:
    assert f"counts are of the first {10:,}" in score.notes[0]


def test_pope_llavas_shuffled_answers_are_read_by_line_and_straight_by_id(tmp_path):
  folder = GOLDEN / "pope"
  lines = (folder / "llava_answers.jsonl").read_text().splitlines()
  random.Random(1).shuffle(lines)
  (tmp_path / "answers.jsonl").write_text("\n".join(lines))
  score = pope.score(tmp_path / "answers.jsonl", labels=folder / "labels", questions=folder / "llava_pope_test.jsonl")
  values = expected("pope")["evaluate.py"]
  for split in ("random", "popular", "adversarial"):
    for name in POPE:
      assert (score.straight | {k: v for k, v in score.scores.items() if k not in score.straight})[f"{split}/{name}"] == (
          values[split][name]
      )
    assert "answers.jsonl:" in noted(score, f"answers of {split} that aren't in the labels' order")
  # By hand: the first answer to a question of "random" is paired with the first label, whatever it answers.
  first = next(r for r in score.rows if r["split"] == "random")
  assert first["truth"] == "yes" and first["line"] == 1


# VQAv2


def check_vqav2(score, values: dict) -> None:
  accuracy = values["accuracy"]
  assert score.scores["overall"] == accuracy["overall"]
  for group in ("perAnswerType", "perQuestionType"):
    assert {k.split("/", 1)[1]: v for k, v in score.scores.items() if k.startswith(f"{group}/")} == accuracy[group]
  assert {str(r["question_id"]): round(100 * r["accuracy"], 2) for r in score.rows} == values["evalQA"]


def test_vqav2_every_figure_of_its_tools():
  values = expected("vqav2")
  check_vqav2(vqav2.score(VQA), values["vqaEval"])
  check_vqav2(vqav2.score(VQA, ids=values["vqaEval_subset_of_ids"]["ids"]), values["vqaEval_subset_of_ids"])
  check_vqav2(vqav2.score(VQA, tool="llava"), values["vqaEval_after_llava_processing"])
  check_vqav2(vqav2.score(VQA.parent / "llava_processed_results.json"), values["vqaEval_after_llava_processing"])
  other = vqav2.score(VQA, tool="lmms-eval")
  for row in other.rows:
    assert row["accuracy"] == pytest.approx(values["other_tool_lmms_eval"]["per_question"][str(row["question_id"])], abs=1e-9)
  assert other.scores["overall"] == pytest.approx(100 * values["other_tool_lmms_eval"]["mean"], abs=1e-9)


def test_vqav2_normalisation_of_every_tool():
  for row in expected("vqav2")["normalisation"]:
    assert vqav2_normalise.full(row["text"]) == row["vqaEval"]
    assert vqav2_normalise.punctuation(row["text"]) == row["vqaEval_punctuation_only"]
    assert vqav2_normalise.llava(row["text"]) == row["llava_EvalAIAnswerProcessor"]


def test_vqav2_contractions_lack_one_apostrophe_each():
  table = vqav2_normalise.CONTRACTIONS
  assert table["wouldnt've"] == table["wouldn'tve"] == "wouldn't've" and "wouldntve" not in table
  assert table["y'alld've"] == "y'all'd've" and table["'ows'at"] == "'ow's'at" and len(table) == 114


def test_vqav2_what_a_straight_reading_gives(tmp_path):
  score = vqav2.score(VQA)
  assert "question 900000001: 'Yes'" in noted(score, "4 answers to questions that all people answer alike")
  assert score.straight["perQuestionType/is the"] == 100
  people = json.loads(ANNOTATIONS.read_text())
  for a in people["annotations"][0]["answers"]:
    a["answer"] = "1000-2000" if a["answer_id"] < 6 else "1,000-2,000"
  people["annotations"] = people["annotations"][:1]
  (tmp_path / "annotations.json").write_text(json.dumps(people))
  (tmp_path / "results.json").write_text('[{"question_id": 900000000, "answer": "1000-2000"}]')
  score = vqav2.score(tmp_path / "results.json", annotations=tmp_path / "annotations.json")
  assert score.scores["overall"] == 100 and "overall" not in score.straight  # five others say so
  (tmp_path / "results.json").write_text('[{"question_id": 900000000, "answer": "10002000"}]')
  score = vqav2.score(tmp_path / "results.json", annotations=tmp_path / "annotations.json")
  assert score.scores["overall"] == 100 and score.straight["overall"] == 0
  noted(score, "1 answers judged otherwise by a straight reading")


def test_vqav2_halves_are_rounded_as_python_2_rounds():
  assert vqav2._rounded(0.03125) == 3.13 and vqav2._rounded(0.00125) == 0.13 and vqav2._rounded(1 / 3) == 33.33


def test_vqav2_wants_an_answer_to_each_question():
  score = vqav2.score(VQA.parent / "results_one_twice.json")
  check_vqav2(score, expected("vqav2")["results_one_twice"])
  noted(score, "1 second answers to a question, of which the last counts")
  with pytest.raises(BadRequest, match="1 are missing and 0 answer none of them"):
    vqav2.score(VQA.parent / "results_one_missing.json")
  with pytest.raises(BadRequest, match="0 are missing and 1 answer none of them"):
    vqav2.score(VQA.parent / "results_one_unknown.json")


# GQA


def check_gqa(score, values: dict) -> None:
  for name, value in values["scores"].items():
    if isinstance(value, dict):
      found = {k.split("/", 1)[1]: [v, score.counts[k]] for k, v in score.scores.items() if k.startswith(f"{name}/")}
      assert found == {k: [pytest.approx(v, abs=1e-9), n] for k, (v, n) in value.items()}, name
    else:
      assert score.scores[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(
    "case, file, how",
    [
        ("plain", "", {}),
        ("plain", "merge.jsonl", {}),
        ("consistency", "", {"consistency": True}),
        ("grounding_mapSize3", "", {"grounding": True, "map_size": 3}),
        ("without_choices_file", "", {"choices": "none"}),
        ("balanced_only_predictions", "balanced_only_predictions.json", {}),
        ("twice_and_unknown_predictions", "twice_and_unknown_predictions.json", {}),
        ("unconverted_predictions", "unconverted_predictions.json", {}),
    ],
)
def test_gqa_every_figure_of_its_tool(case, file, how):
  score = gqa.score(GOLDEN / "gqa" / file, **how)
  check_gqa(score, expected("gqa")[case])
  low, high = score.intervals["accuracy"]
  assert low - 1e-9 <= score.scores["accuracy"] <= high + 1e-9
  if case == "without_choices_file":
    assert np.isnan(score.straight["validity"]) and "without a choices file" in score.notes[0]
  if case == "twice_and_unknown_predictions":
    noted(score, "1 second predictions"), noted(score, "1 predictions for no question")
  if case == "unconverted_predictions":
    noted(score, "8 answers that are wrong by case, blanks or full stops alone")
  if case == "grounding_mapSize3":
    assert score.straight["grounding"] > score.scores["grounding"]


def test_gqa_llavas_conversion():
  lines = reading.json_lines(GOLDEN / "gqa" / "merge.jsonl")
  converted = [{"questionId": r["question_id"], "prediction": gqa.convert(r["text"])} for r in lines]
  assert converted == expected("gqa")["converted_by_llava"]
  assert gqa.convert(".5 Yes. ..") == ".5 yes. "


def test_gqa_where_its_tool_stops():
  with pytest.raises(BadRequest, match="lacks predictions for 1 of the 24 questions"):
    gqa.score(GOLDEN / "gqa" / "one_missing_predictions.json")
  with pytest.raises(BadRequest, match="lacks predictions for 6 of the 30 questions"):
    gqa.score(GOLDEN / "gqa" / "balanced_only_predictions.json", consistency=True)
  with pytest.raises(BadRequest, match="isn't 7 × 7 numbers"):
    gqa.score(GOLDEN / "gqa", grounding=True)


# MMMU


def test_mmmu_every_judgement_and_figure_of_its_tool():
  values = expected("mmmu")
  score = mmmu.score(GOLDEN / "mmmu" / "model")
  rows = {r["id"]: r for r in score.rows}
  for subject, parts in values["main_parse_and_eval"]["by_subject"].items():
    assert (score.scores[f"{subject}/acc"], score.counts[subject]) == (parts["result"]["acc"], parts["result"]["num_example"])
    for item in parts["items"]:
      row = rows[item["id"]]
      read = row["parsed"] if isinstance(row["parsed"], str) else set(row["parsed"])
      assert read == (item["parsed_pred"] if isinstance(item["parsed_pred"], str) else set(item["parsed_pred"])), item
      assert row["right"] == (item["judge"] == "Correct") and row["drawn"] == item.get("was_drawn_at_random", False), item
  for line in values["print_results_table"][2:-1]:
    name, n, accuracy = (cell.strip() for cell in line.strip("|").split("|"))
    assert (score.counts[name], score.scores[name]) == (int(n), float(accuracy)), name
  assert "4 of MMMU's 30 subjects" in score.notes[0]
  noted(score, "8 of 64 answers were drawn") and score.straight["Overall"] == pytest.approx(43 / 64, abs=1e-3)


@pytest.mark.parametrize("case", ["main_eval_only", "main_eval_only_five"])
def test_mmmu_answers_alone(case):
  score = mmmu.score(GOLDEN / "mmmu" / f"total_val_output{case.removeprefix('main_eval_only')}.json")
  printed = expected("mmmu")[case]["printed"]
  assert {k: v for k, v in score.scores.items() if "/" not in k} == {k: v["acc"] for k, v in printed.items()}
  assert score.counts == {k: v["num"] for k, v in printed.items()}
  if case == "main_eval_only_five":
    assert "answers 5 of the 64 questions" in score.notes[0]
  assert "validation_Accounting_1" in noted(score, "2 answers to multiple choice that aren't a capital letter")


def test_mmmu_numbers_without_a_form_in_json_are_words_in_rows(tmp_path):
  item = {"id": "validation_Art_1", "question_type": "open", "answer": "inf", "response": "1e999"}
  (tmp_path / "Art").mkdir()
  (tmp_path / "Art" / "output.json").write_text(json.dumps([item]))
  assert mmmu.score(tmp_path).scores["Art"] == 1  # both are numbers without end
  assert cli.main(["score", "mmmu", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
  row = json.loads((tmp_path / "out" / "rows.jsonl").read_text(), parse_constant=pytest.fail)
  assert row["parsed"][0] == "inf" and row["right"]


def test_a_full_disk_is_one_line_and_leaves_the_score_that_was_there(tmp_path, monkeypatch, capsys):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "rows.jsonl").write_text("whole\n")

  def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr("orthus_jax.files.os.fsync", full)
  (tmp_path / "answers.json").write_text('{"validation_Art_1": "A"}')
  given = [f"--answers={GOLDEN / 'mmmu' / 'answer_dict_val.json'}", f"--out={tmp_path / 'out'}"]
  assert cli.main(["score", "mmmu", str(tmp_path / "answers.json"), *given]) == 2
  assert capsys.readouterr().err.endswith("out can't be written (No space left on device): see to the disk, and run it again\n")
  assert [(f.name, f.read_text()) for f in (tmp_path / "out").iterdir()] == [("rows.jsonl", "whole\n")]


def test_mmmu_an_answer_given_twice_is_told(tmp_path):
  (tmp_path / "out.json").write_text('{"validation_Art_1": "A", "validation_Art_1": "B"}')
  score = mmmu.score(tmp_path / "out.json", answers=GOLDEN / "mmmu" / "answer_dict_val.json")
  assert "validation_Art_1" in noted(score, "1 second answers") and score.scores["Art"] == 1


# Files of another kind, or none


FILES = {
    "mme": GOLDEN / "mme" / "results", "pope": GOLDEN / "pope", "vqav2": VQA, "gqa": GOLDEN / "gqa" / "syn_predictions.json",
    "mmmu": GOLDEN / "mmmu" / "model",
}  # fmt: skip
HOW = {
    "pope": {"labels": GOLDEN / "pope" / "labels"}, "vqav2": {"annotations": ANNOTATIONS},
    "gqa": {"questions": GOLDEN / "gqa" / "syn_questions.json"},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_other_benchmarks_files_are_refused_in_one_line(name, tmp_path):
  (tmp_path / "broken.json").write_text('[\n{"question_id": 1,\n}]')
  (tmp_path / "latin.json").write_bytes(b'[\n{"question_id": 1, "answer": "caf\xe9"}]')
  (tmp_path / "empty.json").write_text("")
  others = [v for k, v in FILES.items() if k != name]
  for path in (*others, GOLDEN / "nothing", tmp_path, *tmp_path.glob("*.json")):
    with pytest.raises(BadRequest) as e:
      getattr(oj.scores, name)(path, **HOW.get(name, {}))
    assert "\n" not in str(e.value) and str(path).split("/")[-1] in str(e.value), e.value


def test_errors_name_the_line(tmp_path):
  for text, words in (
      ('[\n{"question_id": 1,\n"answer"}]', ":3: broken JSON"), ('[\n"\xe9"]'.encode("latin-1"), ":2: isn't UTF-8"),
      ("[" * 100_000, ":1: JSON that is nested too deep"), ("[" + "9" * 5000 + "]", ":1: broken JSON"),
      ('[{"question_id": 1}]', "entry 1: no 'answer' (it has 'question_id')"),
      ('[{"question_id": true, "answer": "a"}]', "'question_id' is True where a whole number or a text"), ("[]", "0 answers"),
  ):  # fmt: skip
    (tmp_path / "r.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadRequest) as e:
      vqav2.score(tmp_path / "r.json", annotations=ANNOTATIONS)
    assert words in str(e.value)
  (tmp_path / "a.json").write_text('{"question": "q", "answer": "a"}\n\n')
  with pytest.raises(BadRequest, match="a.json:2: broken JSON: the line is empty"):
    pope.score(tmp_path / "a.json", labels=GOLDEN / "pope" / "labels" / "coco_pope_random.json")


@pytest.mark.parametrize("file", ["syn_predictions.json", "syn_questions.json", "syn_choices.json"])
def test_half_a_pair_in_a_name_is_one_line(file, tmp_path, capsys):
  folder = shutil.copytree(GOLDEN / "gqa", tmp_path / "gqa")
  rows = json.loads((folder / file).read_text())
  (rows[0] if isinstance(rows, list) else next(iter(rows.values())))["\ud800"] = 1
  (folder / file).write_text(json.dumps(rows))
  assert cli.main(["score", "gqa", str(folder)]) == 2
  error = capsys.readouterr().err
  assert re.search(rf"{file}: entry \d+: has a name that is no text \('\\ud800'\)", error) and error.count("\n") == 1, error


JUNK = st.sampled_from([None, True, 0, -1.5, "", "no", "\ud800", [], ["a"], [[1]], {}, {"a": 1}, 10**400, float("nan")])


def paths_of(value, at=()):
  yield at
  for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
    yield from paths_of(v, (*at, k))


def harmed(value, draw):
  """The value with one of its parts put in another's place, taken out, or written twice."""
  value = copy.deepcopy(value)
  at = draw(st.sampled_from(sorted(paths_of(value), key=lambda p: (len(p), str(p)))))
  if not at:
    return draw(JUNK)
  parent = value
  for k in at[:-1]:
    parent = parent[k]
  what = draw(st.sampled_from(["replace", "remove", "double"]))
  if what == "replace":
    parent[at[-1]] = draw(JUNK)
  elif what == "remove":
    del parent[at[-1]]
  elif isinstance(parent, list):
    parent.append(copy.deepcopy(parent[at[-1]]))
  return value


HARMED = [
    ("vqav2", "v2_OpenEnded_mscoco_val2014_syn_results.json", "", {}),
    ("vqav2", "v2_mscoco_val2014_annotations.json", "", {}),
    ("gqa", "syn_predictions.json", "", {"consistency": True}),
    ("gqa", "syn_questions.json", "", {"grounding": True, "map_size": 3}),
    ("gqa", "syn_choices.json", "", {}),
    ("gqa", "syn_sceneGraphs.json", "", {"grounding": True, "map_size": 3}),
    ("gqa", "syn_attentions.json", "", {"grounding": True, "map_size": 3}),
    ("mmmu", "total_val_output.json", "total_val_output.json", {}),
    ("mmmu", "answer_dict_val.json", "total_val_output.json", {}),
    ("mmmu", "model/Art/output.json", "model", {}),
    ("pope", "answers/random.json", "", {}),
    ("pope", "labels/coco_pope_random.json", "", {}),
    ("pope", "llava_answers.jsonl", "llava_answers.jsonl", {"questions": "llava_pope_test.jsonl"}),
    ("pope", "llava_pope_test.jsonl", "llava_answers.jsonl", {"questions": "llava_pope_test.jsonl"}),
    ("mme", "results/existence.txt", "results", {}),
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
  return shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "benchmarks")


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_no_content_of_a_file_is_a_traceback(copies, data):
  name, file, path, how = data.draw(st.sampled_from(HARMED))
  folder = copies / name
  original = (folder / file).read_bytes()
  lines = original.splitlines()
  if file.endswith(".txt") or data.draw(st.integers(0, 9)) == 0:
    i, j = sorted(data.draw(st.integers(0, len(original))) for _ in range(2))
    made = original[:i] + data.draw(st.sampled_from([b"", b"\n", b"\t", b"\xff", b"\r", b"yes", b"{}", b"\x00"])) + original[j:]
  elif len(lines) > 1 and name == "pope":
    i = data.draw(st.integers(0, len(lines) - 1))
    lines[i] = json.dumps(harmed(json.loads(lines[i]), data.draw)).encode()
    made = b"\n".join(lines)
  else:
    made = json.dumps(harmed(json.loads(original), data.draw)).encode()
  try:
    (folder / file).write_bytes(made)
    options = {k: folder / v if isinstance(v, str) else v for k, v in how.items()}
    score = getattr(oj.scores, name)(folder / path, **options)
    json.dumps(score.to_json(), allow_nan=False)
    json.dumps(score.rows)
    assert all("\n" not in n for n in score.notes)
  except BadRequest as e:
    assert str(folder) in str(e)
  finally:
    (folder / file).write_bytes(original)


# The command


def test_the_command_prints_writes_and_refuses(tmp_path, capsys):
  assert cli.main(["score", "mme", str(GOLDEN / "mme" / "results"), f"--out={tmp_path / 'out'}"]) == 0
  printed = capsys.readouterr().out
  assert "Perception" in printed and "850.00  of 2,000" in printed and "straight reading 533.33" in printed
  assert "calculation.py" in printed and "4 lines without four columns" in printed
  written = json.loads((tmp_path / "out" / "score.json").read_text())
  assert written["scores"]["Perception"] == 850 and len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 164
  assert cli.main(["score", "gqa", str(GOLDEN / "gqa"), "--grounding", "--map-size=3", "--choices=none", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["straight"]["validity"] == "nan"
  for argv, words in (
      ([], "name a benchmark"), (["nope", "x"], "no benchmark is called 'nope'"), (["mme"], "PATH"),
      (["mme", str(tmp_path / "none")], "there is no folder"), (["mme", str(VQA)], "is no folder"),
      (["gqa", str(GOLDEN / "gqa"), "--map-size=x"], "no whole number"), (["mme", "x", "--questions=y"], "unrecognized"),
  ):  # fmt: skip
    assert cli.main(["score", *argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


def test_the_commands_help_tells_of_each_benchmark(capsys):
  assert cli.main(["score", "--help"]) == 0
  listed = capsys.readouterr().out
  for name in FILES:
    assert f"\n  {name} " in listed
    with pytest.raises(SystemExit):
      cli.main(["score", name, "--help"])
    assert "PATH" in capsys.readouterr().out


def test_no_jax_is_needed():
  code = (
      "import sys; from orthus_jax import cli; import orthus_jax as oj; oj.scores.mme(sys.argv[1]);"
      "assert cli.main(['score', 'mme', sys.argv[1], '--json']) == 0; assert not {'jax', 'flax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code, str(GOLDEN / "mme" / "results")], check=True, stdout=subprocess.DEVNULL)

"""Published benchmarks run: asked in one batch, kept in their own layouts, gone on with, the protocol recorded."""

import dataclasses
import errno
import json
import os
from pathlib import Path
import re
import shutil

from benchmark_data import save, write_mme, write_pope
import PIL.Image
import pyarrow.parquet
import pytest
import tiny

from orthus_jax import cli, lock
from orthus_jax.commands import benchmark
from orthus_jax.data.documents import Text
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes_geneval
from orthus_jax.evaluation.runs import execute, prompts, registry, scoring
from orthus_jax.evaluation.runs.asking import MME_SUBTASKS
from orthus_jax.evaluation.runs.task import JOURNAL
from orthus_jax.inference import model as model_lib

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/benchmarks"
BARE = prompts.TEMPLATES["bare"]


@pytest.fixture(scope="module")
def lively():
  return tiny.lively_model()


@pytest.fixture
def geneval(tmp_path):
  include = [{"class": "bus", "count": 1}]
  rows = [{"tag": "colors", "include": include, "prompt": f"a photo of a {c} bus"} for c in ("red", "blue")]
  (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
  return tmp_path


@pytest.fixture
def pope(tmp_path):
  write_pope(tmp_path)
  return tmp_path


@pytest.fixture
def mme(tmp_path):
  write_mme(tmp_path)
  return tmp_path


def run(model, name, data, out, *, template=BARE, progress=None, **changes):
  task = registry.task(name, data, template)
  return execute.run(
      model, task, out, sampling=model.config.sampling, seed=0, protocol={"guidance": 3.0, "versions": {}}, batch_size=4,
      progress=progress, **changes,
  )  # fmt: skip


@pytest.mark.slow
def test_pictures_lie_as_geneval_reads_them_and_a_stopped_run_goes_on_to_the_same(lively, geneval, tmp_path):
  whole = run(lively, "geneval", geneval, tmp_path / "whole")
  assert whole.answered == 8 and not whole.failed

  def stop(done, total):
    assert total == 8
    if done == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(lively, "geneval", geneval, tmp_path / "part", progress=stop)
  kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "part").rglob("*.png")}
  assert 3 <= len(kept) < 8
  run(lively, "geneval", geneval, tmp_path / "part")
  assert {p: p.stat().st_mtime_ns for p in kept} == kept
  names = sorted(str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").rglob("*") if p.is_file())
  assert names[:3] == ["00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png"] and len(names) == 11
  for name in names:
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes(), name
  assert len({(tmp_path / "whole" / n).read_bytes() for n in names if n.endswith(".png")}) == 8  # a seed of its own each
  assert json.loads((tmp_path / "whole" / "00001/metadata.jsonl").read_text())["prompt"] == "a photo of a blue bus"


def test_a_disk_that_fills_up_ends_it_in_one_line_and_it_goes_on(lively, geneval, tmp_path, monkeypatch):
  task = registry.task("geneval", geneval, BARE)
  keep = type(task).keep

  def full(self, out, item, answer):
    if item.id != task.items[0].id:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    keep(self, out, item, answer)

  def answered():
    return execute.run(lively, task, tmp_path / "out", sampling=lively.config.sampling, seed=0, protocol={}, limit=2).answered

  with monkeypatch.context() as m:
    m.setattr(type(task), "keep", full)
    with pytest.raises(BadRequest, match=r"out can't be written \(No space left on device\): .*the same command goes on"):
      answered()
  assert answered() == 2


def test_another_protocols_answers_are_left_alone(lively, geneval, tmp_path):
  run(lively, "geneval", geneval, tmp_path / "out", limit=1)
  task = registry.task("geneval", geneval, BARE)
  with pytest.raises(BadRequest, match=r"another protocol \(guidance was 3.0, and is 5.0\): choose another --out"):
    execute.run(lively, task, tmp_path / "out", sampling=lively.config.sampling, seed=0, protocol={"guidance": 5.0})


def test_sampling_of_an_earlier_build_was_as_todays_defaults(lively, geneval, tmp_path):
  task, out, how = registry.task("geneval", geneval, BARE), tmp_path / "out", lively.config.sampling

  def run_with(**changes):
    protocol = {"sampling": dataclasses.asdict(dataclasses.replace(how, **changes))}
    return execute.run(lively, task, out, sampling=how, seed=0, protocol=protocol, limit=1)

  run_with()
  record = json.loads((out / execute.PROTOCOL).read_text())
  del record["sampling"]["plan"]
  (out / execute.PROTOCOL).write_text(json.dumps(record))
  run_with()
  with pytest.raises(BadRequest, match=r"another protocol \(sampling.plan was False, and is True\)"):
    run_with(plan=True)


def test_answers_of_unknown_origin_are_not_taken_for_this_models(lively, geneval, tmp_path):
  save(tmp_path / "out" / "00000" / "samples" / "0000.png")  # of GenEval's own tools, with another model
  with pytest.raises(BadRequest, match="has answers and no protocol.json, which says whose they are: choose another --out"):
    run(lively, "geneval", geneval, tmp_path / "out")
  assert not (tmp_path / "out" / execute.PROTOCOL).exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt", "a.long.txt"], "the benchmark's data has 'a/0' twice"),
        ([b"caf\xe9.txt"], r"has a name that isn't UTF-8, 'caf\\udce9/0': rename it"),
    ],
)
def test_names_that_cannot_keep_answers_apart_are_refused(lively, names, message, tmp_path):
  for name in names:
    with open(os.path.join(os.fsencode(tmp_path), os.fsencode(name)), "w") as f:
      f.write("a red circle")
  with pytest.raises(BadRequest, match=message):
    run(lively, "dpg_bench", tmp_path, tmp_path / "out")
  assert not (tmp_path / "out").exists()


POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("geneval", "evaluation_metadata.jsonl", '{"prompt": "a"}\n\n', ":2: broken JSON: the line is empty"),
        ("geneval", "evaluation_metadata.jsonl", "", "the benchmark's data holds nothing to ask"),
        ("geneval", "evaluation_metadata.jsonl", '{"prompt": 3}', ":1: 'prompt' is 3 where a text is expected"),
        ("dpg_bench", "a.txt", b"\xff", "a.txt:1: isn't UTF-8: save it as UTF-8"),
        ("wise", "natural_science.json", '{"a": 1}', "holds an object where a list is expected"),
        ("wise", "natural_science.json", '[{"prompt_id": 1}]', "entry 0: no 'Prompt' (it has 'prompt_id')"),
        ("pope", "coco_pope_random.json", b'{"text": "\xff"}', ":1: isn't UTF-8: save it as UTF-8"),
        ("pope", "coco_pope_random.json", '["a"]', ":1: holds a list where an object is expected"),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "[]", "holds a list where an object is expected"),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", '{"questions": [{"question_id": "x"}]}', "y 0: 'question_id'"),
        ("gqa", "val_questions.json", "[]", "holds a list where an object is expected"),
        ("gqa", "val_questions.json", '{"7": {"question": "a"}}', "entry 7: no 'imageId'"),
        ("gqa", "val_questions.json", "{}", "the benchmark's data holds nothing to ask"),
    ],
)
def test_data_of_another_form_is_refused_in_a_line(lively, name, file, text, message, tmp_path):
  (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(BadRequest, match=re.escape(message)) as told:
    run(lively, name, tmp_path, tmp_path / "out")
  assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_lines_are_those_of_a_text_file(tmp_path):
  """A mark ahead of the text, Windows' line ends, and characters that Unicode counts as ends of lines but JSON holds."""
  row = {"tag": "colors", "prompt": "a\u2028red\x85bus"}
  (tmp_path / "evaluation_metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n")
  (tmp_path / "coco_pope_random.json").write_bytes(
      b"\xef\xbb\xbf" + json.dumps(POPE | {"text": "a\u2028b"}, ensure_ascii=False).encode() + b"\r\n"
  )
  assert len(registry.task("geneval", tmp_path, BARE).items) == 4
  assert [i.facts["question"] for i in registry.task("pope", tmp_path, BARE).items] == ["a\u2028b"]


def test_pope_asks_any_of_its_files(tmp_path):
  """One of a folder, and two of another data set, whose pictures lie elsewhere."""
  for place, names in (("coco", ("coco_pope_random", "coco_pope_popular")), ("aokvqa", ("aokvqa_pope_random", "other_labels"))):
    (tmp_path / place).mkdir()
    for name in names:
      (tmp_path / place / f"{name}.json").write_text(json.dumps(POPE) + "\n")
  names = ("coco/coco_pope_random.json", "aokvqa/aokvqa_pope_random.json", "aokvqa/other_labels.json")
  for number, (data, count) in enumerate([*((n, 1) for n in names), (".", 2)]):
    task, out = registry.task("pope", tmp_path / data, BARE), tmp_path / f"out{number}"
    out.mkdir()
    (out / JOURNAL).write_text("".join(json.dumps({"id": i.id, "answer": "yes"}) + "\n" for i in task.items))
    score, found = scoring.score("pope", task, out, task.finish(out))
    assert {v for n, v in score.scores.items() if n.endswith("accuracy")} == {1}
    assert sorted(j.id for j in found) == sorted(i.id for i in task.items), data
    assert len(found) == count


def test_an_answers_blanks_are_no_part_of_gqas_prediction(tmp_path):
  (tmp_path / "val_questions.json").write_text(json.dumps({"7": {"question": "a", "imageId": "b"}}))
  (tmp_path / JOURNAL).write_text(json.dumps({"id": "7", "answer": " Yes.\n"}) + "\n")
  found = registry.task("gqa", tmp_path, BARE).finish(tmp_path)
  assert json.loads(found.read_text()) == [{"questionId": "7", "prediction": "yes"}]


def test_vqav2_without_its_annotations_keeps_the_answers(tmp_path):
  row = {"question_id": 1, "image_id": 1, "question": "a"}
  (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": [row]}))
  (tmp_path / JOURNAL).write_text(json.dumps({"id": "1", "answer": "a"}) + "\n")
  task = registry.task("vqav2", tmp_path, BARE)
  assert "VQAv2's answers: put it there, and run it again" in scoring.score("vqav2", task, tmp_path, task.finish(tmp_path))


def test_one_command_at_a_time_works_in_a_folder(lively, geneval, tmp_path):
  with lock.hold(tmp_path / "out"), pytest.raises(BadRequest, match="out is in use"):
    run(lively, "geneval", geneval, tmp_path / "out")


def test_the_built_in_worlds_captions_write_over_no_other_list(geneval):
  path = geneval / "evaluation_metadata.jsonl"
  before = path.read_bytes()
  with pytest.raises(BadRequest, match="is another list of prompts, and is left as it is"):
    shapes_geneval.export([], geneval)
  assert path.read_bytes() == before


def test_the_protocol_says_how_long_an_answer_may_be(lively, pope):
  task = registry.task("pope", pope, BARE)
  lengths = [execute.longest(task, dataclasses.replace(lively.config.sampling, max_new_tokens=n)) for n in (8, 2048)]
  assert lengths == [8, 16]


def test_pictures_that_wait_for_their_turn_are_as_small_as_the_model_sees_them(lively, pope, monkeypatch):
  PIL.Image.new("RGB", (3000, 2000)).save(pope / "val2014" / "COCO_val2014_000000000001.jpg")
  waiting = []
  monkeypatch.setattr(type(lively), "stream", lambda self, requests, **_: waiting.extend(requests) or ())
  run(lively, "pope", pope, pope / "out")
  resolution = lively.config.model.vision_tokenizer.resolution
  assert [r.document.images[0].pixels.shape for r in waiting] == [(resolution, resolution, 3)] * 3


def test_one_of_several_lists_is_not_taken_by_chance(geneval):
  (geneval / "old").mkdir()
  (geneval / "old" / "evaluation_metadata.jsonl").write_text('{"prompt": "a"}\n')
  with pytest.raises(BadRequest, match="holds 2 .*evaluation_metadata.jsonl.*: name the file"):
    registry.task("geneval", geneval, BARE)


def test_nothing_that_can_be_asked_is_a_failure(lively, pope):
  for path in (pope / "val2014").iterdir():
    path.unlink()
  with pytest.raises(BadRequest, match="none of 4 can be asked: coco_pope_popular/1: the picture"):
    run(lively, "pope", pope, pope / "out")


def test_a_scorer_that_stops_says_that_the_answers_are_kept(lively, tmp_path, monkeypatch, capsys):
  (tmp_path / "val_questions.json").write_text(json.dumps({"7": {"question": "a", "imageId": "b", "isBalanced": True}}))

  def answered(model, task, out, **_):
    out.mkdir()
    (out / JOURNAL).write_text(json.dumps({"id": "7", "answer": "yes"}) + "\n")
    return execute.Outcome(task.finish(out), 1, [])

  monkeypatch.setattr(model_lib, "load", lambda path: lively)
  monkeypatch.setattr(execute, "run", answered)
  assert cli.main(["evaluate", "run", "--benchmark=gqa", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
  error = capsys.readouterr().err
  kept = tmp_path / "out" / "val_predictions.json"
  assert f"all answers are kept in {kept}, and can't be scored: " in error and kept.is_file()
  two = {n: {"question": "a", "imageId": "b", "isBalanced": True} for n in "78"}  # of which one has no answer
  (tmp_path / "val_questions.json").write_text(json.dumps(two))
  assert cli.main(["evaluate", "run", "--benchmark=gqa", f"--data={tmp_path}", f"--out={tmp_path / 'part'}"]) == 0
  told = capsys.readouterr().out
  assert "not scored: " in told and f"1 of 2 answered: {tmp_path / 'part' / JOURNAL}\n" in told


def test_files_of_one_name_are_all_in_the_digest(tmp_path):
  paths = [tmp_path / subject / "validation-00000-of-00001.parquet" for subject in ("Art", "Math")]
  found = []
  for texts in (("a", "b"), ("c", "b"), ("b", "a")):
    for path, text in zip(paths, texts):
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)
    found.append(execute.digest(paths))
  assert found[0]["files"] == 2 and len({d["sha256"] for d in found}) == 3


@pytest.mark.slow
def test_answers_become_each_benchmarks_own_files(lively, pope, mme, tmp_path, caplog):
  outcome = run(lively, "pope", pope, tmp_path / "pope")
  assert outcome.answered == 3 and [name for name, _ in outcome.failed] == ["coco_pope_popular/2"]
  assert "1 of 4 can't be asked, and have no answer: coco_pope_popular/2: the picture" in caplog.text
  rows = [json.loads(line) for line in (outcome.files / "random.json").read_text().splitlines()]
  assert [r["question_id"] for r in rows] == [1, 2] and rows[0].keys() == {"question_id", "question", "answer"}

  outcome = run(lively, "mme", mme, tmp_path / "mme")
  assert outcome.answered == 28
  lines = (outcome.files / "scene.txt").read_text().splitlines()
  assert [line.split("\t")[:3] for line in lines] == [
      ["05.png", "Is it?  Please answer yes or no.", "Yes"], ["05.png", "Is it not?", "No"]
  ]  # fmt: skip
  assert {p.stem for p in outcome.files.iterdir()} == set(MME_SUBTASKS)
  assert all(line.count("\t") == 3 for p in outcome.files.iterdir() for line in p.read_text().splitlines())


@pytest.mark.slow
def test_numbers_and_names_of_vqav2_and_gqa_are_kept(lively, tmp_path):
  folder = tmp_path / "vqa"
  save(folder / "val2014" / "COCO_val2014_000000000042.jpg")
  questions = {"questions": [{"question_id": 42000, "image_id": 42, "question": "What is it?"}]}
  (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
  found = run(lively, "vqav2", folder, tmp_path / "out").files
  assert found.name == "v2_OpenEnded_mscoco_val2014_orthus_results.json"
  assert [r["question_id"] for r in json.loads(found.read_text())] == [42000]

  folder = tmp_path / "gqa"
  save(folder / "images" / "n1.jpg")
  question = {"imageId": "n1", "question": "What is it?", "isBalanced": True}
  rows = {"0001": question, "0002": question | {"isBalanced": False}}
  (folder / "testdev_balanced_questions.json").write_text(json.dumps(rows))
  found = run(lively, "gqa", folder, tmp_path / "gqa_out").files
  assert found.name == "testdev_balanced_predictions.json"
  assert [r["questionId"] for r in json.loads(found.read_text())] == ["0001"]


@pytest.mark.slow
def test_mmmus_pictures_stand_where_a_question_names_them(lively, tmp_path):
  save(tmp_path / "a.png")
  data = (tmp_path / "a.png").read_bytes()
  rows = [
      {"id": "validation_Art_1", "question": "Is <image 2> like <image 1>?", "options": "['yes', \"it's not\"]",
       "question_type": "multiple-choice", "answer": "B", "image_1": {"bytes": data, "path": "a"}, "image_2": {"bytes": data}},
      {"id": "validation_Art_2", "question": "Who made <image 1>?", "options": "[]", "question_type": "open",
       "answer": "['Dix', 'Otto Dix']", "image_1": {"bytes": data}, "image_2": None},
  ]  # fmt: skip
  folder = tmp_path / "MMMU" / "Art"
  folder.mkdir(parents=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "validation-00000-of-00001.parquet")
  alone = shutil.copy(folder / "validation-00000-of-00001.parquet", tmp_path / "art.parquet")
  with pytest.raises(BadRequest, match="art.parquet lies in no folder of an MMMU subject"):
    registry.task("mmmu", Path(alone), prompts.template("orthus"))
  task = registry.task("mmmu", tmp_path / "MMMU", prompts.template("orthus"))
  first = task.items[0].prompt()
  assert [s.text if isinstance(s, Text) else "picture" for s in first.segments] == [
      "Is ", "picture", " like ", "picture",
      "?\n\n(A) yes\n(B) it's not\n\nAnswer with the option's letter from the given choices directly.",
  ]  # fmt: skip
  outcome = run(lively, "mmmu", tmp_path / "MMMU", tmp_path / "out")
  answers = json.loads((outcome.files / "Art" / "output.json").read_text())
  assert answers[0]["index2ans"] == {"A": "yes", "B": "it's not"} and answers[1]["answer"] == ["Dix", "Otto Dix"]
  score, found = scoring.score("mmmu", task, tmp_path / "out", outcome.files)
  assert score.counts["Overall"] == 2 and [j.id for j in found] == ["validation_Art_1", "validation_Art_2"]


@pytest.mark.slow
def test_a_line_that_a_killed_command_left_half_is_asked_again(lively, pope, tmp_path):
  run(lively, "pope", pope, tmp_path / "out")
  journal = tmp_path / "out" / JOURNAL
  whole = journal.read_bytes()
  lines = whole.splitlines(keepends=True)
  journal.write_bytes(b"".join(lines[:2]) + lines[2][:9])
  run(lively, "pope", pope, tmp_path / "out")
  assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_the_command_knows_all_benchmarks_that_can_be_run():
  assert benchmark.NAMES == registry.NAMES  # named twice, as the latter's imports are slow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark=geneval", "--out=o"], "--benchmark=geneval needs --data=DIR"),
        (["--benchmark=geneval", "--data=."], "--benchmark=geneval needs --out=DIR"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--quick"], "--quick is for --benchmark=shapes: leave it out"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--captions=0"], "--captions is for --benchmark=shapes: leave it out"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--world-seed=0"], "--world-seed is for --benchmark=shapes"),
        (["--split=train", "--world-seed=1"], "--world-seed makes a held-out split: --split=test or validation"),
        (["--data=d", "--world-seed=1"], "--world-seed makes its documents, and --data names some"),
        (["--limit=3"], "--limit is for published benchmarks: leave it out"),
        (["--benchmark=geneval", "--data=gone", "--out=o"], "gone doesn't exist: --data names where"),
        (["--benchmark=mme", "--data=.", "--out=o"], "has no folder of MME's (existence, count, position, …)"),
        (["--benchmark=geneval", "--data=.", "--out=o"], "one evaluation_metadata.jsonl, GenEval's prompts, and holds none"),
        (["--benchmark=pope", "--data=.", "--out=o", "--samples=2"], "--samples is for benchmarks that ask for pictures"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--judge=tiny:x"], "--judge=tiny:x can't be loaded: module 'tiny'"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--judge=:"], "--judge=: can't be loaded: Empty module name; name it"),
        (["--benchmark=geneval", "--data=.", "--out=o", "--judge=sys:path"], "which can't be called; name it as module"),
        (["--benchmark=mme", "--data=.", "--out=o", "--judge=a:b"], "--judge is for --benchmark=geneval, and mme has none"),
        (["--benchmark=pope", "--data=.", "--out=o", "--images=gone"], "--images=gone is no folder: it names where"),
        (["--benchmark=geneval", "--data=shapes", "--out=o", "--template=x"], "no prompt template is called 'x': orthus, cham"),
    ],
)
def test_a_bad_request_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["evaluate", "run", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not list(tmp_path.iterdir())

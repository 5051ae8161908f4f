"""What a benchmark's run takes from its data, keeps in its folder and records, with a model that answers at once."""

import json
from pathlib import Path
import re

from benchmark_data import save, write_mme, write_pope
import numpy as np
import pytest

from orthus_jax import cli
from orthus_jax.config import Config, SamplingConfig
from orthus_jax.data.documents import document
from orthus_jax.data.shapes import records
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes_geneval
from orthus_jax.evaluation.benchmarks import gqa
from orthus_jax.evaluation.runs import execute, prompts, registry, scoring
from orthus_jax.evaluation.runs.task import JOURNAL
from orthus_jax.inference import model as model_lib
from orthus_jax.inference.responses import Finished

GOLDEN = Path(__file__).parent / "golden/benchmarks"
ORTHUS, BARE = prompts.TEMPLATES["orthus"], prompts.TEMPLATES["bare"]
WISE = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")


class Ready:
  """A model that answers "yes", or draws a grey picture; it remembers what it was asked."""

  def __init__(self):
    self.config, self.params, self.asked = Config(), {}, []

  def stream(self, requests, batch_size):
    for index, request in enumerate(requests):
      self.asked.append(request)
      answer = np.full((32, 32, 3), 99, np.uint8) if request.respond == "image" else "yes"
      said = request.document.segments
      yield Finished(index=index, document=document(*said, answer, learn=[len(said)]))


@pytest.fixture
def model(monkeypatch):
  model = Ready()
  monkeypatch.setattr(model_lib, "load", lambda run: model)
  return model


def run(model, name, data, out, *, template=BARE, **changes):
  task = registry.task(name, data, template)
  protocol = {"template": template.source, "limit": changes.get("limit")}
  return execute.run(model, task, out, sampling=SamplingConfig(), seed=0, protocol=protocol, **changes)


def evaluate(name, data, out, *options):
  return cli.main(["evaluate", "run", f"--benchmark={name}", f"--data={data}", f"--out={out}", *options])


def recorded(out):
  return json.loads((out / execute.PROTOCOL).read_text())


def answer(out, items, text="yes"):
  out.mkdir(exist_ok=True)
  (out / JOURNAL).write_text("".join(json.dumps({"id": i.id, "answer": text}) + "\n" for i in items))


def write_geneval(folder, *colors):
  rows = [{"tag": "colors", "include": [{"class": "bus", "count": 1}], "prompt": f"a {c} bus"} for c in colors]
  (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wise(tmp_path):
  """Both versions, as the repository has them."""
  home = tmp_path / "WISE"
  rows = [[{"prompt_id": n, "Prompt": "a cake"}] for n in range(3)]
  for folder, end, extra in (("data_verified", "_verified", ()), ("WISE_legacy/data", "", WISE)):
    (home / folder).mkdir(parents=True)
    for name, row in zip(WISE, rows):
      (home / folder / f"{name}{end}.json").write_text(json.dumps(row))
    for name in extra:
      (home / folder / f"{name}_rewrite.json").write_text(json.dumps(rows[0]))
  (home / "data_verified/merge.json").write_text(json.dumps(sum(rows, [])))
  return home


@pytest.mark.parametrize(
    ("data", "version", "count"),
    [
        ("data_verified", "verified", 3),
        ("WISE_legacy", "legacy", 3),
        ("data_verified/merge.json", "verified", 3),
        ("data_verified/natural_science_verified.json", "verified", 1),
        ("WISE_legacy/data/natural_science_rewrite.json", "legacy", 1),
    ],
)
def test_a_wise_run_says_which_version_it_is_of(model, wise, data, version, count, tmp_path, capsys):
  assert evaluate("wise", wise / data, tmp_path / "out", "--json") == 0
  told = json.loads(capsys.readouterr().out)
  assert (told["wise_version"], told["answered"]) == (version, count)
  assert recorded(tmp_path / "out")["wise_version"] == version
  record = recorded(tmp_path / "out")
  del record["wise_version"]  # of an earlier build, whose data's digest says as much
  (tmp_path / "out" / execute.PROTOCOL).write_text(json.dumps(record))
  assert evaluate("wise", wise / data, tmp_path / "out") == 0


def test_wises_two_versions_in_one_folder_are_refused(wise):
  with pytest.raises(BadRequest, match=r"both versions .*--data=\S+/WISE_legacy/data \(legacy\) or --data=\S+/data_verified"):
    registry.task("wise", wise, BARE)


def test_mmes_questions_end_as_those_of_lmms_eval(model, tmp_path, capsys):
  write_mme(tmp_path)
  texts = [registry.task("mme", tmp_path, t).items[0].prompt().texts[-1].text for t in (ORTHUS, BARE)]
  assert texts == ["Is it? \nAnswer the question using a single word or phrase.", "Is it?  Please answer yes or no."]
  assert evaluate("mme", tmp_path, tmp_path / "out") == 0
  record = recorded(tmp_path / "out")
  assert record.pop("question_end").startswith("Answer the question using a single word")
  (tmp_path / "out" / execute.PROTOCOL).write_text(json.dumps(record))  # of a build that asked otherwise
  assert evaluate("mme", tmp_path, tmp_path / "out") == 2
  assert "another protocol (question_end was None, and is Answer" in capsys.readouterr().err
  line = (tmp_path / "out/results/scene.txt").read_text().splitlines()[0]
  assert line == "05.png\tIs it?  Please answer yes or no.\tYes\tyes"  # the release's own words


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_of_mme_have_two_questions(count, tmp_path):
  write_mme(tmp_path)
  (tmp_path / "MME_Benchmark/OCR/03.txt").write_text("Is it?\tYes\n" * count)
  with pytest.raises(BadRequest, match=f"OCR/03.txt holds {count} questions, where MME has two a picture"):
    _ = registry.task("mme", tmp_path, BARE).items


def test_popes_questions_are_of_one_folder_and_a_split_of_one_file(tmp_path):
  for name in ("a/coco_pope_random.json", "b/coco_pope_popular.json"):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("")
  with pytest.raises(BadRequest, match="has POPE's questions in 2 folders, .*/a and .*/b: name one"):
    registry.task("pope", tmp_path, BARE)
  (tmp_path / "a/coco_pope_random_labels.json").write_text("")
  with pytest.raises(BadRequest, match="are both of POPE's split random: name the folder or file of one"):
    registry.task("pope", tmp_path / "a", BARE)


# --- what a folder holds --------------------------------------------------------------------------------------------


def test_a_folder_without_an_answer_is_free_for_another_protocol(model, tmp_path):
  data, out = tmp_path / "data", tmp_path / "out"
  write_pope(data)
  pictures = sorted((data / "val2014").iterdir())
  for path in pictures:
    path.rename(path.with_suffix(".gone"))
  with pytest.raises(BadRequest, match="none of 4 can be asked"):
    run(model, "pope", data, out, template=ORTHUS)
  for path in pictures:
    path.with_suffix(".gone").rename(path)
  run(model, "pope", data, out)
  assert recorded(out)["template"] == BARE.source
  with pytest.raises(BadRequest, match=f"has answers of another protocol .template was {BARE.source}"):
    run(model, "pope", data, out, template=ORTHUS)
  write_geneval(data, "red")
  with pytest.raises(BadRequest, match="has answers of another protocol"):  # another benchmark's count too
    run(model, "geneval", data, out, template=ORTHUS)


@pytest.mark.parametrize(
    ("limits", "recorded_limit", "answered", "beyond"),
    [((4, 2), 4, 2, 2), ((None, 2), None, 2, 6), ((2, 4), 4, 4, 0), ((2, None), None, 8, 0)],
)
def test_a_smaller_limit_later_takes_nothing_back(model, limits, recorded_limit, answered, beyond, tmp_path):
  write_geneval(tmp_path, "red", "blue")
  found = [run(model, "geneval", tmp_path, tmp_path / "out", limit=limit) for limit in limits]
  assert (found[1].answered, found[1].beyond) == (answered, beyond)
  assert recorded(tmp_path / "out")["limit"] == found[1].protocol["limit"] == recorded_limit


def test_what_lies_beyond_the_limit_is_told(model, tmp_path, capsys):
  write_geneval(tmp_path, "red", "blue")
  judged = (tmp_path, tmp_path / "out", f"--judge={shapes_geneval.JUDGE}")
  assert evaluate("geneval", *judged) == evaluate("geneval", *judged, "--limit=2") == 0
  assert capsys.readouterr().out.endswith("answered 6 more, beyond --limit=2, which are scored too\n")
  assert re.search(r"<dt>limit</dt><dd[^>]*>None<", (tmp_path / "out/index.html").read_text())


@pytest.mark.parametrize("name, part, text", [("pope", "popular", "answers/popular.json"), ("mme", "OCR", "results/OCR.txt")])
def test_files_that_go_by_lines_are_written_once_they_are_whole(name, part, text, tmp_path):
  (write_pope if name == "pope" else write_mme)(tmp_path)
  out, task = tmp_path / "out", registry.task(name, tmp_path, BARE)
  hole = next(i for i in task.items if i.facts["part"] == part)
  answer(out, [i for i in task.items if i is not hole])
  (out / text).parent.mkdir()
  (out / text).write_text("of an earlier version\n")
  files = task.finish(out)
  assert not (out / text).exists() and len(list(files.iterdir())) == {"pope": 1, "mme": 13}[name]
  told = scoring.score(name, task, out, files)
  assert told == (f"1 questions have no answer (1 of {part}, which have no file yet, as the tool goes by its lines);"
                  " the benchmark's tool wants all")  # fmt: skip
  answer(out, [*reversed(task.items)])  # as they came
  score, found = scoring.score(name, task, out, task.finish(out))
  assert len((out / text).read_text().splitlines()) == 2
  assert [j.id for j in sorted(found, key=lambda j: j.id)] == sorted(i.id for i in task.items)


def test_the_built_in_worlds_captions_come_after_the_protocol_is_found_to_be_the_same(model, tmp_path, monkeypatch, capsys):
  world = [records.make_document("caption_to_image", "test", n, seed=0, resolution=32) for n in range(2)]
  monkeypatch.setattr(sources, "open_world", lambda config: world)
  out, other = tmp_path / "out", tmp_path / "other"
  save(other / "00000/samples/0000.png")
  (other / execute.PROTOCOL).write_text("{}")
  assert evaluate("geneval", "shapes", other) == 2
  assert "has answers of another protocol" in capsys.readouterr().err
  assert sorted(p.name for p in other.iterdir()) == ["00000", execute.PROTOCOL]
  assert evaluate("geneval", "shapes", out, "--samples=1") == 0
  assert (out / shapes_geneval.METADATA).read_text() == shapes_geneval.captions(world)
  assert evaluate("geneval", "shapes", out, "--samples=1") == 0
  (out / shapes_geneval.METADATA).write_text("{}")
  assert evaluate("geneval", "shapes", out, "--samples=1") == 2
  assert "is another list of prompts" in capsys.readouterr().err


# --- how it is asked, and scored ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "length"), [((), 16), (("--max-new-tokens=200",), 200), (("--max-new-tokens=8",), 8)])
def test_a_length_that_is_asked_for_holds(model, options, length, tmp_path):
  write_pope(tmp_path)
  assert evaluate("pope", tmp_path, tmp_path / "out", *options) == 0
  assert {r.sampling.max_new_tokens for r in model.asked} == {recorded(tmp_path / "out")["max_new_tokens"]} == {length}


@pytest.mark.parametrize("choices", [True, False])
def test_gqas_choices_beside_the_questions_are_taken(choices, tmp_path):
  for name in ("questions", "choices")[: 1 + choices]:
    (tmp_path / f"syn_{name}.json").write_bytes((GOLDEN / f"gqa/syn_{name}.json").read_bytes())
  task, out = registry.task("gqa", tmp_path, BARE), tmp_path / "out"
  given = {p["questionId"]: p["prediction"] for p in json.loads((GOLDEN / "gqa/syn_predictions.json").read_text())}
  out.mkdir()
  lines = [json.dumps({"id": i.id, "answer": given[i.id]}) + "\n" for i in task.items]
  (out / JOURNAL).write_text("".join(lines))
  score, _ = scoring.score("gqa", task, out, file := task.finish(out))
  beside = {name: GOLDEN / f"gqa/syn_{name}.json" for name in ("questions", "choices")}
  wanted = gqa.score(file, **beside | ({} if choices else {"choices": "none"})).scores
  assert {k: score.scores[k] for k in ("validity", "plausibility")} == {k: wanted[k] for k in ("validity", "plausibility")}
  assert (score.scores["validity"] > 0) == choices


def test_prompts_that_were_not_drawn_are_named(model, tmp_path):
  write_geneval(tmp_path, "red", "blue")
  task, out = registry.task("geneval", tmp_path, BARE), tmp_path / "out"
  outcome = run(model, "geneval", tmp_path, out, limit=4)
  score, _ = scoring.score("geneval", task, out, outcome.files, judge=shapes_geneval.JUDGE)
  assert any("1 prompts of the benchmark have no picture" in n and "(a blue bus)" in n for n in score.notes)

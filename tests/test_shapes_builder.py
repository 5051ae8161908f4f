import collections
import json
import multiprocessing
from pathlib import Path
import pickle
import subprocess
import sys
import types

import pytest
import tiny

from orthus_jax.config.command_line import load_config
from orthus_jax.data.documents import Image, Text, in_order
from orthus_jax.data.shapes import builder, changes, detector, language, records, world
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest

ROOT = Path(__file__).parent.parent
SIZES = {"train": dict.fromkeys(records.KINDS, 12), "test": dict.fromkeys(records.KINDS, 8)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("data")
  builder.prepare(path, **SIZES)
  return path


def test_documents_come_back_as_made(data_dir):
  for split, each in (("train", 12), ("validation", 2), ("test", 8)):
    documents = builder.documents(data_dir, split, **SIZES)
    assert len(documents) == len(records.KINDS) * each == len({d.id for d in documents})
    assert collections.Counter(d.kind for d in documents) == dict.fromkeys(records.KINDS, each)
    for document in documents:
      kind, number = document.id.split("/")[2:]
      made = records.make_document(kind, split, int(number))
      assert document.segments == made.segments and document.kind == kind
      assert document.meta == json.loads(json.dumps(made.meta))


def test_a_split_of_another_seed_is_as_the_data_sets_own_would_be(data_dir):
  builder.prepare(data_dir, **SIZES, seed=3)
  split = builder.make_config(**SIZES, seed=3).split("test")
  made = split.documents(0, len(split))
  stored = builder.documents(data_dir, "test", **SIZES, seed=3)
  assert [d.id for d in made] == [d.id for d in stored] and [d.segments for d in made] == [d.segments for d in stored]
  config = load_config(f"{ROOT}/configs/shapes.py")
  judged = sources.open_world(config, "validation", seed=3)
  assert collections.Counter(d.kind for d in judged) == builder.make_config().sizes("validation")
  assert judged[0].segments == records.make_document(judged[0].kind, "validation", 0, seed=3).segments
  assert {world.split_of(records.as_things(d.meta["things"])) for d in judged if "things" in d.meta} == {"validation"}


@pytest.mark.parametrize("main, can", [
    (dict(__spec__=types.SimpleNamespace(name="orthus_jax.cli")), True), (dict(__file__="/usr/bin/orthus"), True), ({}, True),
    (dict(__file__="/home/somebody/train.py"), False), (dict(__file__="<stdin>"), False),
    (dict(__spec__=types.SimpleNamespace(name="theirs.train"), __file__="/theirs/train.py"), False),
])  # fmt: skip
def test_no_script_is_run_again_in_processes(main, can, monkeypatch):
  monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(**main))
  assert builder.processes.can_start() is can


def test_processes_make_what_this_one_makes(data_dir, tmp_path, monkeypatch, capsys):
  builder.prepare(data_dir, **SIZES)
  monkeypatch.setattr(builder, "_WORTH", 8)
  monkeypatch.setattr(builder.processes, "can_start", lambda: True)
  done, ordered = [], builder.processes.ordered

  def killed(work, spans, processes, **how):  # of one split, after what they did first
    for i, chunk in enumerate(ordered(work, spans, processes, **how)):
      done.append((processes, multiprocessing.active_children()))
      if work.__self__.name == "test" and i == 0:
        for child in multiprocessing.active_children():
          child.kill()
      yield chunk

  monkeypatch.setattr(builder.processes, "ordered", killed)
  monkeypatch.setattr(builder, "_AT_ONCE", 4)
  builder.prepare(tmp_path, **SIZES)
  assert all(n and children for n, children in done[:2]) and "making documents" in capsys.readouterr().err
  for split in world.SPLITS:
    one, other = (builder.documents(place, split, **SIZES) for place in (data_dir, tmp_path))
    assert list(one) == list(other) == list(in_order(other)) and [d.meta for d in one] == [d.meta for d in other]


@pytest.mark.parametrize("how", ["raises", "is no record"])
def test_a_damaged_record_costs_itself_alone_however_it_is_read(how, data_dir, caplog):
  documents = builder.documents(data_dir, "test", **SIZES, max_bad_share=0.5)
  whole, source = list(documents), documents._source

  class Damaged:
    def __getitem__(self, index):
      if index == 3:
        raise RuntimeError("a checksum doesn't fit")
      return source[index]

    def __getitems__(self, indices):
      if how == "raises" and 3 in indices:
        raise RuntimeError("a checksum doesn't fit")
      return [b"no" if i == 3 else source[i] for i in indices]

  documents._source = Damaged()
  assert list(in_order(documents)) == [None if i == 3 else d for i, d in enumerate(whole)]
  assert documents.bad.count == 1 and "record 3" in caplog.text


def test_documents_are_a_sequence_that_can_be_sent_elsewhere(data_dir):
  documents = builder.documents(data_dir, "train", **SIZES)
  assert documents[-1].id == documents[len(documents) - 1].id == pickle.loads(pickle.dumps(documents))[-1].id
  with pytest.raises(IndexError):
    documents[len(documents)]
  kinds = [d.kind for d in documents]
  assert kinds != sorted(kinds, key=records.KINDS.index)


def test_preparing_again_makes_nothing(data_dir, capfd):
  before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
  builder.prepare(data_dir, **SIZES)
  assert before == {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
  out = capfd.readouterr()
  assert out.out == out.err == ""


def test_other_sizes_lie_elsewhere(data_dir, capfd):
  sizes = {k: dict.fromkeys(records.KINDS, 1) for k in ("train", "test")}
  with pytest.raises(BadRequest, match="prepare"):
    builder.documents(data_dir, "train", 64, **sizes)
  builder.prepare(data_dir, 64, **sizes, seed=3)
  out = capfd.readouterr()
  assert out.out == out.err == ""
  document = builder.documents(data_dir, "train", 64, seed=3, **sizes)[0]
  assert document.images[0].pixels.shape == (64, 64, 3)
  assert document.segments != records.make_document(document.kind, "train", 0, resolution=64).segments


def test_a_config_says_how_many_documents_training_has(tmp_path, monkeypatch):
  def config(source="shapes", **numbers):
    return tiny.config(
        data__source=source, data__path=str(tmp_path), data__documents=list(numbers.items()), data__sequence_length=300,
        model__transformer__max_positions=300, model__vision_tokenizer__resolution=32,
    )  # fmt: skip

  numbers = dict.fromkeys(records.KINDS, 1) | {"edit": 9, "copy": 0}
  monkeypatch.setattr(builder, "TEST", dict.fromkeys(builder.TEST, 3))
  asked = []
  with monkeypatch.context() as m:
    m.setattr(builder, "prepare", lambda where, resolution, **sizes: asked.append(sizes))
    m.setattr(builder, "documents", lambda *_, **__: asked)
    for split in ("train", "test"):
      sources.open_source(config(**numbers), split)
  assert asked == [{"train": numbers}, {}]  # whoever asks a test's questions doesn't wait for what others learn from
  train = collections.Counter(d.kind for d in sources.open_source(config(**numbers), "train"))
  assert train == {k: n for k, n in numbers.items() if n}
  assert len(sources.open_source(config(**numbers), "test")) == sum(builder.TEST.values())
  assert [p.parent.parent.name for p in tmp_path.rglob("dataset_info.json")] == [builder.make_config(train=numbers).name]
  with pytest.raises(BadRequest, match="'poem'"):
    sources.open_source(config(poem=1), "train")
  with pytest.raises(BadRequest, match="data.documents is for data.source=shapes"):
    config("folder", edit=9)


def test_known_configs_keep_their_names():
  assert [builder.make_config(r).name for r in world.RESOLUTIONS] == ["32", "64", "128"]
  assert sum(builder.make_config().sizes("train").values()) == 39500
  assert builder.make_config().sizes("validation")["caption_to_image"] == 150
  assert builder.make_config(seed=1).name != "32"


def test_bad_requests(tmp_path):
  for wrong in ({"resolution": 48}, {"train": {"poem": 1}}, {"test": {"edit": -1}}, {"train": {"edit": 1.5}}):
    with pytest.raises(BadRequest):
      builder.prepare(tmp_path, **wrong)
  with pytest.raises(BadRequest, match="prepare"):
    builder.documents(tmp_path, "train")
  with pytest.raises(BadRequest, match="split"):
    builder.documents(tmp_path, "dev")
  blocked = tmp_path / "file"
  blocked.write_text("")
  with pytest.raises(BadRequest, match="file"):
    builder.prepare(blocked / "data", **SIZES)


def test_no_tensorflow_and_no_torch(tmp_path):
  code = f"""
import sys
from orthus_jax.data.shapes import builder
from orthus_jax.training.loggers import tensorboard  # tensorboardX brings torch by itself where that is installed
sizes = dict(train=dict.fromkeys(builder.TRAIN, 1), test=dict.fromkeys(builder.TEST, 1))
builder.prepare({str(tmp_path)!r}, **sizes)
assert len(list(builder.documents({str(tmp_path)!r}, 'train', **sizes))) == len(builder.TRAIN)
print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]" and done.stderr == ""


# --- what documents hold --------------------------------------------------------------------------------------------


def shown(image):
  return detector.detect(image.pixels)


@pytest.mark.parametrize("split", world.SPLITS)
def test_documents_keep_to_their_split_and_show_what_they_say(split):
  for number in range(18):
    for kind in records.KINDS:
      document = records.make_document(kind, split, number)
      assert document.kind == kind and len(document.segments) > 1
      lists = document.meta.get("turns") or [document.meta[k] for k in ("source", "things") if k in document.meta]
      scenes = [records.as_things(one) for one in lists]
      assert all(world.split_of(things) == split for things in scenes)
      assert len(scenes) == len(document.images)
      assert all(detector.matches(shown(i), things) for i, things in zip(document.images, scenes))


def forms(document):
  return [(type(s), s.learn) for s in document.segments]


def test_what_is_given_and_what_is_learnt():
  made = {kind: records.make_document(kind, "test", 1) for kind in records.KINDS}
  given_text, given_image, text, image = (Text, False), (Image, False), (Text, True), (Image, True)
  assert forms(made["caption_to_image"]) == [given_text, image]
  assert forms(made["image_to_caption"]) == [given_image, given_text, text]
  assert forms(made["crowd_to_image"]) == [given_text, image]
  assert forms(made["planned_caption"]) == [given_text, text, image]
  assert forms(made["planned_edit"]) == [given_image, given_text, text, image]
  assert forms(made["outline"]) == [given_image, given_text, text]
  for kind in ("planned_caption", "planned_edit", "outline"):
    said = language.parse_outline(language.aim(made[kind].texts[-1].text))
    assert list(said) == [d.thing for d in shown(made[kind].images[-1])]
  assert forms(made["edit"]) == forms(made["copy"]) == [given_image, given_text, image]
  assert made["copy"].images[0].pixels is not made["copy"].images[1].pixels
  assert (made["copy"].images[0].pixels == made["copy"].images[1].pixels).all()
  for kind in ("question", "brief_question"):
    asked = made[kind].meta["questions"]
    assert forms(made[kind]) == [given_image] + [given_text, text] * len(asked)
    assert [s.text for s in made[kind].segments[1:]] == [r[k] for r in asked for k in ("question", "answer")]
    assert forms(made[f"planned_{kind}"]) == [given_image] + [given_text, text] * len(made[f"planned_{kind}"].meta["questions"])
  for kind in ("story", "planned_story"):
    assert forms(made[kind]) == [given_text] + [text, image] * len(made[kind].meta["turns"])
  things = ()
  for told, scene in zip(made["planned_story"].texts[1:], made["planned_story"].meta["turns"], strict=True):
    sentence, planned = language.split_told(told.text)
    things = changes.apply_sentence(things, sentence)
    assert sorted(things) == sorted(language.parse_outline(planned)) == sorted(records.as_things(scene))


@pytest.mark.parametrize("kind", ["planned_question", "planned_brief_question"])
def test_words_ahead_of_a_count_number_what_is_counted(kind):
  counts = 0
  for number in range(40):
    document = records.make_document(kind, "train", number)
    things = records.as_things(document.meta["things"])
    for record, said in zip(document.meta["questions"], document.texts[1::2], strict=True):
      ahead, answer = language.split_counted(said.text)
      assert answer == record["answer"] and bool(ahead) == (record["type"] == "count")
      if not ahead:
        continue
      counts += 1
      placed, asked = [], record["question"]
      attribute = "color" if any(color in asked for color in world.COLORS) else "shape"
      for thing, words in zip(language.reading_order(things), ahead.split(", "), strict=True):
        there, _, count = words.removeprefix(f"{thing.place} ").partition(" ")
        assert words.startswith(f"{thing.place} ") and there == getattr(thing, attribute)
        assert bool(count) == (there in asked or language.PLURALS.get(there, there) in asked)
        if count:
          placed.append(thing.place)
          assert count == language.NUMBERS[len(placed)]
      alike = {t for t in things if t.place in placed}
      shapes, colors = ({getattr(t, a) for t in alike} for a in ("shape", "color"))
      if record["form"] == "open":
        assert answer == language.NUMBERS[len(placed)]
      assert any(all(getattr(t, a) not in found for t in set(things) - alike)
                 for a, found in (("shape", shapes), ("color", colors)) if len(found) == 1)  # fmt: skip
  assert counts > 20


@pytest.mark.parametrize("text, expected", [
    ("top left red one, center blue: one", ("top left red one, center blue", "one")),
    ("right cross: no", ("right cross", "no")),
    ("top left, center: two", ("top left, center", "two")), ("top some: two", ("", "top some: two")), ("two", ("", "two")),
    ("top red blue: two", ("", "top red blue: two")), ("top one red: two", ("", "top one red: two")),
    ("somewhere: two", ("", "somewhere: two")), ("top left: ", ("", "top left: ")), ("top left", ("", "top left")),
])  # fmt: skip
def test_only_what_is_counted_is_taken_off_an_answer(text, expected):
  assert language.split_counted(text) == expected


@pytest.mark.parametrize("number", range(24))
def test_words_of_an_edit_say_what_changes_and_what_is_there_then(number):
  document = records.make_document("planned_edit", "test", number)
  source, target = (set(records.as_things(document.meta[name])) for name in ("source", "things"))
  said, _, planned = document.texts[-1].text.partition(": ")
  (change,) = (item for item in said.split(" and ") if " to " in item)
  before, after = (set(language.parse_outline(side) or ()) for side in change.split(" to "))
  assert (before, after) == (source - target, target - source)
  ahead = [language.parse_outline(item.split(" to ")[0]) for item in said.split(" and ")]
  assert [things[0] for things in ahead if things] == list(language.reading_order(tuple(source)))
  assert set(language.parse_outline(planned)) == target and planned == language.aim(document.texts[-1].text)


_RED, _BLUE, _CROSS = "top large red circle", "top large blue circle", "right small green cross"


@pytest.mark.parametrize("ahead, taken_off", [
    (f"{_RED} to {_BLUE} and {_CROSS}", True), (f"{_RED} and nothing to {_CROSS}", True), (f"{_RED} to nothing", True),
    (f"{_RED} and {_CROSS}", False), (f"{_RED} to {_BLUE} and {_CROSS} to nothing", False), ("it turns blue", False),
    (f"{_RED} to {_BLUE} to {_CROSS}", False), (f"{_RED} to something and {_CROSS}", False),
])  # fmt: skip
def test_of_an_edits_words_what_follows_the_change_is_drawn(ahead, taken_off):
  words = f"{ahead}: {_BLUE} and {_CROSS}"
  assert language.aim(words) == (f"{_BLUE} and {_CROSS}" if taken_off else words)


def test_captions_of_pictures_say_all_in_reading_order():
  for number in range(12):
    document = records.make_document("image_to_caption", "train", number)
    said = language.parse_things(document.segments[-1].text)
    assert list(said) == [d.thing for d in shown(document.images[0])]


def test_tags_and_pairs_by_split():
  test = [records.make_document("caption_to_image", "test", i).meta["tag"] for i in range(60)]
  assert collections.Counter(test) == dict.fromkeys(language.TAGS, 10)
  train = collections.Counter(records.make_document("caption_to_image", "train", i).meta["tag"] for i in range(600))
  assert set(train) == {*language.TAGS, language.DESCRIPTION} and 260 < train["single_object"] < 370
  crowds = collections.Counter(records.make_document("crowd_to_image", "train", i).meta["tag"] for i in range(300))
  assert set(crowds) == set(train) - {"single_object", "colors"} and crowds[language.DESCRIPTION] > 90
  for split, paired in (("test", True), ("validation", True), ("train", False)):
    asked = records.make_document("question", split, 0).meta["questions"]
    assert any(r["pair"] is not None for r in asked) is paired


def test_documents_depend_on_seed_split_and_number_alone():
  for kind in records.KINDS:
    one = records.make_document(kind, "train", 3)
    assert one == records.make_document(kind, "train", 3)
    assert one.segments != records.make_document(kind, "train", 4).segments
    assert one.segments != records.make_document(kind, "train", 3, seed=1).segments
    large = records.make_document(kind, "train", 3, resolution=64)
    assert large.texts == one.texts and large.images[0].pixels.shape == (64, 64, 3)
  with pytest.raises(BadRequest, match="poem"):
    records.make_document("poem", "train", 0)


def test_stories_read_as_their_turns():
  document = records.make_document("story", "test", 2)
  things = ()
  for sentence, turn in zip([t for t in document.texts if t.learn], document.meta["turns"]):
    things = changes.apply_sentence(things, sentence.text)
    assert set(things) == set(records.as_things(turn))

"""What a run, or a model, goes on from is compared by what it means, not by its shapes."""

import copy
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import time

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import tiny
import tokenizers

import orthus_jax as oj
from orthus_jax import training_run
from orthus_jax.config import to_dict
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.text_tokenizer import TextTokenizer, TokenNames
from orthus_jax.data.tokenizer_difference import change, difference, saved_digest
from orthus_jax.data.tokenizer_training import train_tokenizer
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.training import initial_state, loop
from orthus_jax.training.checkpoints import agreement, manifest, workdir as checkpoint
from orthus_jax.training.checkpoints.export_huggingface import to_huggingface
from orthus_jax.training.state import plan_run

TK = tiny.tokenizer()
TEXTS = (*tiny.WORDS, " ".join(tiny.WORDS), "unseen words, boxes!")


def changed(do) -> TextTokenizer:
  """TK with its file changed."""
  spec = json.loads(TK._plain.to_str()) | copy.deepcopy(TK._spec)
  do(spec)
  return TextTokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)))


def other() -> TextTokenizer:
  """As many ids as TK has, for other words."""
  words = [w[::-1] for w in tiny.WORDS] + list(tiny.WORDS)
  found = train_tokenizer([" ".join(words)] * 50 + words * 50, TK.vocab_size, tiny.CODES)
  assert found.vocab_size == TK.vocab_size
  return found


def swap(spec):
  vocab = spec["model"]["vocab"]
  a, b = [n for n in vocab if n.isalpha()][-2:]
  vocab[a], vocab[b] = vocab[b], vocab[a]


# --- tokenizers -----------------------------------------------------------------------------------------------------


def add(spec):
  spec["model"]["vocab"]["Zq"] = TK.vocab_size
  spec["model"]["merges"].append(["Z", "q"])


def test_a_tokenizer_of_as_many_ids_is_another(tmp_path):
  assert re.fullmatch("id [0-9]+ is '.*' there and '.*' here", difference(TK, other()))
  assert re.fullmatch("id [0-9]+ is '.*' there and '.*' here", difference(TK, changed(swap)))
  assert "merged in another order" in difference(TK, changed(lambda s: s["model"]["merges"].reverse()))
  assert "pre_tokenizer" in difference(TK, changed(lambda s: s["pre_tokenizer"].update(add_prefix_space=True)))
  assert "normalizer" in difference(TK, changed(lambda s: s.update(normalizer={"type": "Lowercase"})))
  roles = TextTokenizer(tokenizers.Tokenizer.from_str(json.dumps(TK._spec)), names=TokenNames(bos="</s>", eos="<s>"))
  assert difference(TK, roles) == f"bos is id {TK.bos} there and {TK.eos} here"


def test_what_changes_no_id_is_no_other_tokenizer(tmp_path):
  file = TK.save(tmp_path)
  spec = json.loads(file.read_text())
  file.write_text(json.dumps(dict(reversed(spec.items()))))  # the same in one line, in another order
  assert change(TK, TextTokenizer.load(file)) == "" and saved_digest(tmp_path) == TK.digest()
  limits = dict(max_length=9, strategy="LongestFirst", stride=0, direction="Right")
  assert change(TK, changed(lambda s: s.update(truncation=limits))) == ""
  assert difference(TK, changed(add)) == "" and change(TK, changed(add)) == "it knows more tokens here than there"
  assert difference(changed(add), TK)


@settings(max_examples=int(os.environ.get("ORTHUS_EXAMPLES", 100)), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=3))
def test_tokenizers_that_agree_give_the_same_ids(changes):
  def do(spec):
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for kind, a, b in changes:
      names = [n for n, i in vocab.items() if TK.vocab_size > i and TK.text_ids_mask()[i]]
      x, y = names[a % len(names)], names[b % len(names)]
      i, j = a % len(merges), b % len(merges)
      if kind == 0:
        vocab[x], vocab[y] = vocab[y], vocab[x]
      elif kind == 1:
        merges[i], merges[j] = merges[j], merges[i]
      elif kind == 2:
        del merges[i]
      elif kind == 3 and x + y not in vocab:
        vocab[x + y] = max(vocab.values()) + 1
        merges.append([x, y])
      elif kind == 4:
        spec["pre_tokenizer"]["use_regex"] = bool(a % 2)
      elif kind == 5:
        spec["post_processor"] = None
      elif kind == 6:
        spec["model"]["ignore_merges"] = bool(a % 2)

  try:
    new = changed(do)
  except Exception:  # swapped merges may need what isn't there yet
    return
  if not difference(TK, new):
    for i in np.flatnonzero(TK.text_ids_mask()):
      assert new.decode([i]) == TK.decode([i])
  if not change(TK, new):
    assert [new.encode(t) for t in TEXTS] == [TK.encode(t) for t in TEXTS]


# --- configs --------------------------------------------------------------------------------------------------------


def test_the_tables_name_fields_that_there_are():
  def fields(node, where=""):
    inner = node.items() if isinstance(node, dict) else ()
    return {where} | {f for k, v in inner for f in fields(v, f"{where}.{k}".strip("."))}

  known = fields(to_dict(tiny.config()))
  for table in (agreement.FREE, agreement.MOVED, agreement._FIRST, agreement._OWN, agreement._NEVER):
    assert set(table) <= known


def begun(folder, step=4, *, data=True, **changes):
  """A workdir that says what a run of `step` steps would; no more than that is read of it."""
  checkpoint.open_workdir(folder, tiny.config(**changes), TK)
  if step:
    place = folder / "checkpoints" / str(step)
    place.mkdir(parents=True)
    manifest.write(place, {"data": {"documents": 3, "digest": "abc"}} if data else {})
  return folder


def test_what_may_change_when_a_run_is_started_again(tmp_path):
  run = begun(tmp_path / "run")
  free = dict(
      run__log_every=2, run__checkpoint_every=1, run__report=True, run__keep_best=1, mesh__tensor=2, sampling__steps=9,
      data__max_bad_share=0.5, model__diffusion__loss_chunk=8, model__transformer__remat="full", run__steps=9,
      run__init_from=[["", "gone"]], run__resume_from="gone", data__path="elsewhere", data__tokenizer=str(run),
  )  # fmt: skip
  for field, value in free.items():
    assert checkpoint.check_workdir(run, tiny.config(**{field: value})), field
  assert checkpoint.check_workdir(run, tiny.config(**free))
  way = f"to go on from it: --workdir=NEW --resume_from={run}"
  for field, value in dict(
      run__seed=1, run__batch_size=16, data__kinds=[["draw", 1.0]], optimizer__learning_rate=1e-3, data__turns="separate",
      sampling__unconditional_prompt="other", model__transformer__rope_theta=5.0, optimizer__schedule="cosine",
  ).items():  # fmt: skip
    name = field.replace("__", ".")
    with pytest.raises(BadRequest, match=f"another config \\({name} differs\\): .* there, .* here; {way}"):
      checkpoint.check_workdir(run, tiny.config(**{field: value}))
  with pytest.raises(BadRequest, match=r"\(optimizer.b1 differs\): 0.9 there, 0.8 here, and so do run.seed; "):
    checkpoint.check_workdir(run, tiny.config(run__seed=1, optimizer__b1=0.8))
  old = begun(tmp_path / "old", data=False)  # which doesn't say what it was trained on
  with pytest.raises(BadRequest, match="data.path differs"):
    checkpoint.check_workdir(old, tiny.config(data__path="elsewhere"))
  fresh = begun(tmp_path / "fresh", step=0)
  assert checkpoint.check_workdir(fresh, tiny.config(data__path="elsewhere", run__steps=9))
  with pytest.raises(BadRequest, match="it has no checkpoint: choose another --workdir or remove it"):
    checkpoint.check_workdir(fresh, tiny.config(run__init_from=[["", "other"]]))


@pytest.mark.parametrize("changes, steps, on", [
    (dict(optimizer__schedule="constant"), 100, True), (dict(optimizer__schedule="constant"), 5, True),
    (dict(optimizer__schedule="cosine"), 100, False), (dict(optimizer__schedule="linear"), 5, False),
    (dict(optimizer__schedule="cosine", optimizer__warmup_steps=4), 100, True),  # it is still warming up
    (dict(optimizer__warmup_steps=9), 100, False),  # cut short by the end of the run
    (dict(optimizer__warmup_steps=9), 9, False),
])  # fmt: skip
def test_more_steps_go_on_where_those_done_are_the_same(tmp_path, changes, steps, on):
  run = begun(tmp_path / "run", step=4, run__steps=8, **changes)
  if on:
    assert checkpoint.check_workdir(run, tiny.config(run__steps=steps, **changes))
  else:
    with pytest.raises(BadRequest, match="run.steps differs"):
      checkpoint.check_workdir(run, tiny.config(run__steps=steps, **changes))


def test_codes_that_are_replaced_until_near_the_end_are_part_of_the_steps():
  old, new = (tiny.config(task="vision_tokenizer", optimizer__trainable=[".*"], run__steps=n) for n in (10, 20))
  assert not agreement.another_run(old, new, done=8, data_known=True)
  assert [d.field for d in agreement.another_run(old, new, done=9, data_known=True)] == ["run.steps"]


def test_a_config_of_an_earlier_version_has_defaults_where_it_says_nothing(tmp_path):
  run = begun(tmp_path / "run")
  said = json.loads((run / "config.json").read_text())
  del said["optimizer"]["rounding"], said["model"]["diffusion"]["timesteps"]
  (run / "config.json").write_text(json.dumps(said))
  assert checkpoint.check_workdir(run, tiny.config())
  with pytest.raises(BadRequest, match="rounding differs"):
    checkpoint.check_workdir(run, tiny.config(optimizer__rounding="nearest"))
  (run / "config.json").write_text(json.dumps(said | {"later": 1}))
  with pytest.raises(BadRequest, match="isn't of this version of orthus_jax .*'later'.*--workdir=NEW --resume_from="):
    checkpoint.check_workdir(run, tiny.config())
  for other in ("[1, 2]", "3", "null"):  # JSON, and no fields
    (run / "config.json").write_text(other)
    with pytest.raises(BadRequest, match="config.json isn't of this version of orthus_jax .config: expected fields, got"):
      checkpoint.check_workdir(run, tiny.config())


def test_a_models_fields_are_refused_told_or_its_own():
  def of(**changes):
    refused, told = agreement.other_model(tiny.config(), tiny.config(**changes))
    return [d.field for d in refused], [d.field for d in told]

  assert of(model__transformer__norm_placement="swin") == (["model.transformer.norm_placement"], [])
  assert of(model__vision_tokenizer__norm_groups=8) == (["model.vision_tokenizer.norm_groups"], [])
  told = dict(
      model__transformer__rope_theta=5.0, model__transformer__norm_eps=1e-6, model__diffusion__latent_scale=0.1,
      model__diffusion__beta_end=0.02, model__vision_embedding__temperature=0.5, model__vision_tokenizer__pixels={"scale": 0.5},
  )  # fmt: skip
  assert of(**told) == ([], [
      "model.diffusion.beta_end", "model.diffusion.latent_scale", "model.transformer.norm_eps", "model.transformer.rope_theta",
      "model.vision_embedding.temperature", "model.vision_tokenizer.pixels.scale",
  ])  # fmt: skip
  assert of(model__transformer__remat="full", model__diffusion__draws=3, run__seed=4, optimizer__b1=0.5,
            model__vision_embedding__history_noise=0.3) == ([], [])  # fmt: skip


# --- data -----------------------------------------------------------------------------------------------------------


class Altered(tiny.TinySource):
  """The source with one document changed."""

  def __init__(self, alter, n: int = 40):
    super().__init__(n)
    self._alter = alter

  def __getitem__(self, i: int):
    d = super().__getitem__(i)
    return self._alter(d) if i == 7 else d


def brighter(d):
  segments = [dataclasses.replace(s, pixels=s.pixels + 1) if hasattr(s, "pixels") else s for s in d.segments]
  return dataclasses.replace(d, segments=tuple(segments))


def contents(source, **changes):
  return Pipeline(source, TK, tiny.config(**changes)).contents()


def test_data_is_told_apart_by_what_is_trained_on():
  there = contents(tiny.TinySource())
  assert there == contents(tiny.TinySource(), run__seed=4, sampling__unconditional_prompt="draw", data__caption_dropout=0.3)
  assert there == contents(Altered(lambda d: dataclasses.replace(d, id="another name")))
  same = "40 documents as before, and not the same"
  reversed_ = Altered(lambda d: dataclasses.replace(d, segments=tuple(reversed(d.segments))))
  given_ = Altered(lambda d: dataclasses.replace(d, segments=(d.segments[0], *(
      dataclasses.replace(s, learn=i < 2) for i, s in enumerate(d.segments[1:])
  ))))  # fmt: skip
  for source in (Altered(brighter), reversed_, given_):
    assert checkpoint.other_data(there, contents(source)) == same
  assert checkpoint.other_data(there, contents(tiny.TinySource(41))) == "40 documents there, 41 here"
  assert checkpoint.other_data(None, there) == ""


# --- whole runs -----------------------------------------------------------------------------------------------------


def _to_the_end(config, task, layout, mesh, optimizer, state, saver, *_, **__):
  state = dataclasses.replace(state, step=jax.device_put(np.int32(config.run.steps), state.step.sharding))
  loop._save_last(saver, state, None)
  return state, {"compile": 0.0, "train": 0.0}


def _zeros(*args, **options):
  layout, _ = plan_run(*args, **options)

  def create(brought: frozenset[str]):
    _zeros.brought = brought
    return jax.tree.map(lambda s, where: jax.device_put(np.zeros(s.shape, s.dtype), where), layout.shapes, layout.shardings)

  return layout, create


@pytest.fixture(scope="module", autouse=True)
def _nothing_compiled():
  """What a run goes on from is settled without its steps and whatever the values: what takes long to compile is left out."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_run_steps", _to_the_end)
    patch.setattr(loop, "plan_run", _zeros)
    yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, _nothing_compiled):
  """A folder of pictures, two tokenizers and a run of two steps."""
  place = tmp_path_factory.mktemp("agreement")
  (place / "data").mkdir()
  tiny.write_folder(place / "data")
  TK.save(place / "tk")
  other().save(place / "other")
  train(place, place / "run")
  return place


def setup(place, **changes):
  at = dict(data__path=str(place / "data"), data__tokenizer=str(place / "tk"), run__steps=2, model__transformer__layers=1)
  return tiny.config(**(at | changes))


def train(place, workdir, **changes):
  return training_run.run(setup(place, **changes), workdir, begin=time.monotonic())


def files_of(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_at_the_very_end_costs_the_report_alone(place, tmp_path, monkeypatch):
  run = shutil.copytree(place / "run", tmp_path / "run")
  (run / "report.json").unlink()
  write = training_run.files.write_text

  def full(path, text):
    if path.name == "report.json":
      raise OSError(errno.ENOSPC, "No space left on device")
    write(path, text)

  with monkeypatch.context() as m:
    m.setattr(training_run.files, "write_text", full)
    with pytest.raises(Stopped, match=r"trained and saved, but .*report.json can't be written .*No space left.*again") as e:
      train(place, run)
  assert e.value.status == 1
  train(place, run)
  assert (run / "report.json").is_file()


def test_a_run_goes_on_only_with_its_own_tokenizer_and_data(place, tmp_path, caplog):
  run = shutil.copytree(place / "run", tmp_path / "run")
  before = files_of(run)

  def refused(message, **changes):
    with pytest.raises(BadRequest, match=message) as e:
      train(place, run, **changes)
    assert "\n" not in str(e.value) and files_of(run) == before

  refused(f"another tokenizer .id .*set data.tokenizer={run}", data__tokenizer=str(place / "other"), run__steps=3)
  grown = shutil.copytree(place / "data", tmp_path / "grown")
  rows = (grown / "metadata.jsonl").read_text()
  (grown / "metadata.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
  refused(f"24 documents there, 26 here.*--workdir=NEW --resume_from={run}", data__path=str(grown), run__steps=3)
  (grown / "metadata.jsonl").write_text(rows.replace("red", "blue", 1))
  refused("24 documents as before, and not the same", data__path=str(grown), run__steps=3)
  refused("step 2, past run.steps=1: raise it", run__steps=1)
  # What lies elsewhere, is called otherwise or isn't needed any more keeps nobody from going on.
  with caplog.at_level("INFO"):
    train(place, run, data__tokenizer=str(tmp_path / "gone"))
  assert "gone isn't there: going on with the workdir's own" in caplog.text
  shutil.copy(place / "other" / "tokenizer.json", run)
  for which in ("tk", "other"):
    with pytest.raises(BadRequest, match="tokenizer.json isn't the tokenizer that the checkpoint of step 2 was trained with"):
      train(place, run, data__tokenizer=str(place / which))
  (run / "tokenizer.json").unlink()
  with pytest.raises(BadRequest, match="has lost its tokenizer"):
    train(place, run, data__tokenizer=str(place / "other"), run__steps=3)
  moved = shutil.copytree(place / "data", tmp_path / "moved")
  with caplog.at_level("INFO"):
    train(place, run, data__path=str(moved), run__steps=3, run__init_from=[["", str(tmp_path / "gone")]])
  assert "own checkpoint of step 2, not from run.init_from" in caplog.text
  assert f"data.path {agreement.short(str(place / 'data'))} -> {agreement.short(str(moved))}" in caplog.text
  assert checkpoint.steps(run) == [2, 3] and saved_digest(run) == TK.digest()


@pytest.mark.slow
def test_a_source_is_compared_by_what_its_arrays_mean(place, tmp_path, caplog):
  run, logger = place / "run", logging.getLogger("orthus_jax")
  logger.propagate = True
  for option in (dict(run__init_from=[["", str(run)]]), dict(run__resume_from=str(run / "checkpoints" / "2"))):
    for changes, message in (
        (dict(data__tokenizer=str(place / "other")), f"with another tokenizer .id .*set data.tokenizer={run}"),
        (dict(model__transformer__norm_placement="swin"), "norm_placement=pre, and means nothing with swin: set it to pre"),
        (dict(model__vision_tokenizer__norm_groups=8), "norm_groups=4, and means nothing with 8"),
    ):
      with pytest.raises(BadRequest, match=message):
        train(place, tmp_path / "new", **option, **changes)
      assert not (tmp_path / "new").exists()
  added = changed(add)
  initial_state.check_sources(setup(place, run__init_from=[["", str(run)]]), tmp_path / "new", added)
  # What may be meant is told.
  grown = shutil.copytree(place / "data", tmp_path / "grown")
  rows = (grown / "metadata.jsonl").read_text()
  (grown / "metadata.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
  with caplog.at_level("INFO"):
    more = dict(data__path=str(grown), optimizer__learning_rate=1e-3, run__steps=3)
    train(place, tmp_path / "new", run__resume_from=str(run), **more)
  assert "with other settings than that run's: optimizer.learning_rate 0.01 -> 0.001, run.steps 2 -> 3\n" in caplog.text
  assert "with other data than that run's: 24 documents there, 26 here" in caplog.text
  caplog.clear()
  train(place, tmp_path / "init", run__init_from=[["", str(run)]], model__transformer__rope_theta=5.0, run__steps=1,
        model__vision_embedding__patch_positions=True)  # fmt: skip
  assert f"{run} was trained with other settings than this run's: model.transformer.rope_theta 10000.0 -> 5.0" in caplog.text
  assert "vision_embedding/codebook" in _zeros.brought and "vision_embedding/position_embedding" not in _zeros.brought
  assert "1 parameters start fresh, as run.init_from brings none of them: vision_embedding/position_embedding" in caplog.text


def test_what_is_frozen_and_comes_from_nowhere_is_told(caplog):
  config = tiny.config(optimizer__trainable=("layers/.*",))
  names = dict.fromkeys(("layers/attention", "token_embedding", "vision_tokenizer/encoder"))
  initial_state._tell_of_fresh(config, names, {"vision_tokenizer/encoder"})
  told = "1 parameters stay as drawn at random: optimizer.trainable freezes them, and run.init_from brings none of them"
  assert f"{told}: token_embedding" in caplog.text
  caplog.clear()
  initial_state._tell_of_fresh(config, names, {"vision_tokenizer/encoder", "token_embedding"})
  assert not caplog.text


def test_a_model_is_loaded_with_its_own_tokenizer(place, tmp_path):
  run = shutil.copytree(place / "run", tmp_path / "run")
  assert oj.load(run).tokenizer.digest() == TK.digest()
  shutil.copy(place / "other" / "tokenizer.json", run)
  for use in (lambda: oj.load(run), lambda: to_huggingface(run, tmp_path / "out")):
    with pytest.raises(BadRequest, match="tokenizer.json isn't the tokenizer that the checkpoint of step 2 was trained with"):
      use()
  (run / "tokenizer.json").unlink()
  for use in (lambda: oj.load(run), lambda: to_huggingface(run, tmp_path / "out")):
    with pytest.raises(BadRequest, match="tokenizer.json is missing: bring back"):
      use()
  assert not (tmp_path / "out").exists()


# --- other systems --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def systems(place):
  """A run of a Chameleon, beside `place / "run"`, which is an Orthus."""
  train(place, place / "chameleon", **tiny.SYSTEMS["chameleon"])
  return place


@pytest.mark.slow
def test_a_chameleon_begins_any_system(systems, tmp_path, caplog):
  source = systems / "chameleon"
  for name, kind in (("orthus", "diffusion"), ("regression", "regression"), ("showo", "masked"), ("chameleon", "codes")):
    caplog.clear()
    with caplog.at_level("INFO"):
      train(systems, tmp_path / name, run__init_from=[["", str(source)]], run__steps=1, **tiny.SYSTEMS[name])
    said = f"{source} has no image head: this model's (model.image_head.kind={kind}, "
    assert (said in caplog.text) is (name != "chameleon") and "brings none of them" not in caplog.text
    other = "other settings than this run's: model.transformer.image_attention causal -> full\n"
    assert (other in caplog.text) is (name == "showo") and caplog.text.count("other settings") == (name == "showo")


@pytest.mark.parametrize("source, name, kinds", [
    ("orthus", "chameleon", ("diffusion", "codes")), ("orthus", "regression", ("diffusion", "regression")),
    ("showo", "chameleon", ("masked", "codes")), ("showo", "orthus", ("masked", "diffusion")),
    ("regression", "orthus", ("regression", "diffusion")), ("regression", "showo", ("regression", "masked")),
])  # fmt: skip
def test_one_systems_head_is_not_anothers(tmp_path, source, name, kinds):
  run = begun(tmp_path / "run", **tiny.SYSTEMS[source])
  said = f"{run} was trained with model.image_head.kind={kinds[0]}, and means nothing with {kinds[1]}: set it to {kinds[0]}"
  with pytest.raises(BadRequest, match=said):
    initial_state.check_sources(tiny.config(run__init_from=[["", str(run)]], **tiny.SYSTEMS[name]), tmp_path / "new", TK)


def test_another_systems_state_is_not_gone_on_with(systems, tmp_path):
  with pytest.raises(BadRequest, match="isn't a state of this model and optimizer .*to take its parameters alone, set"):
    train(systems, tmp_path / "new", run__resume_from=str(systems / "chameleon"), run__steps=3)


@pytest.mark.parametrize("source, to", [("run", "chameleon"), ("run", "regression"), ("run", "showo"), ("chameleon", "orthus")])
def test_a_config_that_was_made_another_systems_ends_in_one_line(systems, tmp_path, source, to):
  run = shutil.copytree(systems / source, tmp_path / "run")
  changes = dict(tiny.SYSTEMS[to], run__steps=3)
  (run / "config.json").write_text(json.dumps(to_dict(setup(systems, **changes))))
  for use in (lambda: oj.load(run), lambda: to_huggingface(run, tmp_path / "out"), lambda: train(systems, run, **changes)):
    with pytest.raises(BadRequest) as e:
      use()
    assert "\n" not in str(e.value), e.value
  assert not (tmp_path / "out").exists() and checkpoint.steps(run) == [2]

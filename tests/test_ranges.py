"""Every number of every config has a range, declared where the field is; what lies outside is refused at once, by name."""

import dataclasses
import math
import os
from pathlib import Path
import typing

from hypothesis import given, settings, strategies as st
import jax
import numpy as np
import pytest
import tiny

from orthus_jax import cli, config as config_lib, training_run
from orthus_jax.config import Config, from_dict, ranges, to_dict
from orthus_jax.config.command_line import load_config
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import train_step
from orthus_jax.training.tasks import OrthusTask

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", 200))
SHIPPED = ("shapes.py", "shapes.py:runlocal", "shapes.py:fast", "shapes.py:long", "shapes_tokenizer.py", "folder.py",
           "orthus_7b.py",
           "orthus_7b.py:stage1-h100-8", "orthus_7b.py:pretrain-2xv5p-128", "orthus_7b.py:decoder-h100-8",
           "shapes.py:decoder")  # fmt: skip
SECTIONS = [c for c in vars(config_lib).values() if dataclasses.is_dataclass(c)]


def fields(section, where=""):
  """(dotted name, type with what it declares) of every field below a section's class."""
  for name, hint in typing.get_type_hints(section, include_extras=True).items():
    if dataclasses.is_dataclass(hint):
      yield from fields(hint, f"{where}{name}.")
    else:
      yield f"{where}{name}", hint


FIELDS = dict(fields(Config))


def sample(hint):
  """A value of a type, one item in each list, so that each number within is met."""
  origin = typing.get_origin(hint)
  if origin is typing.Annotated:
    return sample(typing.get_args(hint)[0])
  if origin is tuple:
    return tuple(sample(h) for h in typing.get_args(hint) if h is not Ellipsis)
  return 0


NUMBERS = {name: list(ranges.numbers(hint, sample(hint))) for name, hint in FIELDS.items()}
NUMERIC = {name: [found for found, _ in several] for name, several in NUMBERS.items() if several}


def changed(base: Config, name: str, value) -> Config:
  tree = to_dict(base)
  *path, last = name.split(".")
  node = tree
  for part in path:
    node = node[part]
  node[last] = value
  return from_dict(Config, tree)


def test_every_number_declares_its_range():
  assert set(SECTIONS) == {type(s) for s in _sections(Config())}
  assert len(NUMERIC) > 70 and all(found is not None for several in NUMERIC.values() for found in several), [
      name for name, several in NUMERIC.items() if None in several
  ]


def _sections(section):
  yield section
  for f in dataclasses.fields(section):
    if dataclasses.is_dataclass(value := getattr(section, f.name)):
      yield from _sections(value)


@pytest.mark.parametrize("name", sorted(n for n, hint in FIELDS.items() if typing.get_origin(hint) is typing.Annotated
                                        and n in NUMERIC))  # fmt: skip
def test_each_section_checks_its_numbers(name):
  (found,) = NUMERIC[name]
  kind = typing.get_args(FIELDS[name])[0]
  beyond = [found.low - 1, found.high * 2 + 1, -(10**30), 10**30, 10**5000]
  for value in beyond:
    if value in found:
      continue
    with pytest.raises(BadRequest) as refused:
      changed(tiny.config(), name, kind(value) if abs(value) < 1e300 else value)
    said = str(refused.value)
    assert f"{name}=" in said and len(said) < 300 and ("at least" in said or "above" in said or "finite" in said), said


WILD = st.one_of(
    st.integers(-3, 20), st.integers(-(10**25), 10**25),
    st.sampled_from([2**k + d for k in (7, 31, 32, 63, 64) for d in (-1, 0, 1)]),
    st.floats(), st.floats(0, 2), st.sampled_from([0.0, -0.0, 1.0, 1e-300, 1e-40, 1e-9, 1 - 1e-9, 1e38, 1e39]),
    st.none(), st.booleans(), st.text(max_size=4), st.lists(st.integers(-2, 9), max_size=4),
    st.lists(st.floats(), min_size=2, max_size=3),
    st.lists(st.tuples(st.sampled_from(["a", "captions", ""]), st.one_of(st.integers(), st.floats())), max_size=2),
    st.lists(st.tuples(st.integers(-1, 9), st.lists(st.tuples(st.just("a"), st.floats()), max_size=2)), max_size=2),
)  # fmt: skip
BASES = {name: load_config(str(CONFIGS / name)) for name in SHIPPED} | {"tiny": tiny.config()}


def test_any_value_is_refused_by_name_or_builds():
  @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
  @given(st.sampled_from(sorted(BASES)), st.sampled_from(sorted(FIELDS)), WILD)
  def check(base, name, value):
    try:
      config = changed(BASES[base], name, value)
    except BadRequest as e:
      said = str(e)
      assert name.rsplit(".", 1)[-1] in said and said.isprintable() and len(said) < 600, (base, name, value, said)
      return
    assert from_dict(Config, to_dict(config)) == config
    if base == "tiny" and name.startswith("model") and config.model not in described and len(described) < EXAMPLES // 20:
      described[config.model] = describe(config.model)  # by jax.eval_shape

  described: dict = {}
  check()


def losses(config: Config) -> list[float]:
  """Of two steps, and of the state that they leave."""
  task = OrthusTask(config, Pipeline(tiny.TinySource(), tiny.tokenizer(), config))
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  optimizer = make_optimizer(config.optimizer, config.run)
  layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
  step = jax.jit(train_step(task, optimizer, config, layout))
  state, found = create(), []
  for i in range(3):
    state, metrics = step(state, task.batch(i))
    found.append(float("nan") if metrics["skipped"] else float(metrics["loss"]))
  return found


PARTS = ("model.transformer", "model.vision", "model.diffusion", "optimizer", "data")


def at_end(part: str, end: str) -> dict:
  """Changes that put each number of a part that isn't whole at one end of its range, or at that which float32 has there."""
  changes = {}
  for name in NUMERIC:
    if not name.startswith(part) or typing.get_args(FIELDS[name])[:1] != (float,):
      continue
    (found,) = NUMERIC[name]
    beside, at, away = (found.above, found.low, math.inf) if end == "low" else (found.below, found.high, -math.inf)
    changes[name.replace(".", "__")] = float(np.nextafter(np.float32(at), np.float32(away))) if beside else at
  if part == "model.diffusion":
    changes["model__diffusion__beta_start"] /= 2 if end == "high" else 1
    changes["model__diffusion__beta_end"] *= 2 if end == "low" else 1
  if part == "optimizer":
    changes |= {"optimizer__name": "muon"}
    changes["optimizer__weight_decay"] /= changes["optimizer__learning_rate"] * 100  # what they multiply is decayed by
  return changes


ENDS = [(part, end) for part in PARTS for end in ("low", "high")] if EXAMPLES > 200 else [
    ("optimizer", "low"), ("optimizer", "high"), ("model.transformer", "low"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part, end", ENDS)
def test_the_ends_of_ranges_train(part, end):
  config = tiny.config(**{"model__transformer__layers": 1, "run__batch_size": 4} | at_end(part, end))
  assert np.isfinite(losses(config)).all()


@pytest.mark.parametrize("argv, message", [
    ("generate RUN --prompt=a --seed=99999999999", "--seed: 99999999999 must be at least -2147483648"),
    ("generate RUN --prompt=a --seed=2147483647 --count=2", "--count=2 runs beyond"),
    ("generate RUN --requests=x --out=y --seed=-2147483649", "--seed: -2147483649"),
    ("generate RUN --prompt=a --count=100000000000", "--count: 100000000000"),
    ("generate RUN --prompt=a --steps=0", "--steps: 0 must be at least 1"),
    ("generate RUN --prompt=a --temperature=nan", "--temperature: nan must be"),
    ("generate RUN --prompt=a --guidance=inf", "--guidance: inf must be"),
    ("generate RUN --prompt=a --guidance-interval 0.5 0.2", "(low, high)"),
    ("generate RUN --prompt=a --max-new-tokens=" + "9" * 5000, "is no whole number"),
    ("generate RUN --prompt=a --batch-size=0", "--batch-size: 0"),
    ("generate RUN --prompt=a --max-images=-1", "--max-images: -1"),
    ("evaluate RUN --seed=-1", "--seed: -1 must be at least 0"),
    ("evaluate RUN --samples=0", "--samples: 0 must be at least 1"),
    ("evaluate RUN --top-p=1.5", "--top-p: 1.5"),
    ("convert --from=a --to=b --seed=-1", "--seed: -1"),
    ("convert --from=a --to=b --shard-size=nan", "--shard-size: nan"),
    ("plan --config=CONFIG --topology=v5e:2x2 --slices=999999999", "--slices=999999999"),
    ("train --config=CONFIG --workdir=RUN --config.run.seed=-1", "run.seed=-1 must be at least 0"),
    ("train --config=CONFIG --workdir=RUN --config.run.seed=9223372036854775808", "run.seed=9223372036854775808"),
    ("train --config=CONFIG --workdir=RUN --config.run.steps=99999999999999999999", "run.steps=99999999999999999999"),
    ("train --config=CONFIG --workdir=RUN --config.model.transformer.kv_heads=0", "model.transformer.kv_heads=0"),
    ("train --config=CONFIG --workdir=RUN --config.model.vision_tokenizer.channel_multipliers=(1,0)",
     "model.vision_tokenizer.channel_multipliers=(1, 0): 0 must be at least 1"),
    ("train --config=CONFIG --workdir=RUN --config.optimizer.eps=0", "optimizer.eps=0.0 must be at least 1e-20"),
    ("train --config=CONFIG --workdir=RUN --config.data.kinds=(('captions',-1),)", "data.kinds"),
])  # fmt: skip
def test_numbers_of_a_command_line_are_refused_at_once(argv, message, capsys, tmp_path, monkeypatch):
  def never(*args, **kwargs):
    raise AssertionError("the work has begun")

  monkeypatch.setattr(training_run, "run", never)
  words = argv.replace("CONFIG", str(CONFIGS / "shapes.py")).replace("RUN", str(tmp_path / "run")).split(" ")
  assert cli.main(words) == 2
  said = capsys.readouterr().err
  assert message in said and said.count("\n") == 1 and len(said) < 400, said
  assert not list(tmp_path.iterdir())

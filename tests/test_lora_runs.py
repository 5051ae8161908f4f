"""LoRA: a run beside frozen weights, on a mesh; what it saves, goes on from and exports."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lora import outputs
import tiny

import orthus_jax as oj
from orthus_jax import cli
from orthus_jax.config import BadRequest, RunConfig
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.inference.model import Model
from orthus_jax.models import lora
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import initial_state, loop
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import TrainState, digest, plan_run
from orthus_jax.training.tasks import OrthusTask

pytestmark = pytest.mark.slow
TK = tiny.tokenizer()
LORA = dict(
    model__lora__rank=4, model__lora__alpha=8.0, run__steps=6, run__checkpoint_every=3, optimizer__learning_rate=2e-2,
    mesh__fsdp=4, mesh__tensor=2,
)  # fmt: skip


def task(config) -> OrthusTask:
  return OrthusTask(config, Pipeline(tiny.TinySource(), TK, config))


def train(folder, config) -> loop.Result:
  initial_state.check_sources(config, folder, TK)
  checkpoint.open_workdir(folder, config, TK)
  return loop.train(config, folder, task(config))


def losses(folder) -> list[float]:
  return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A run's directory of a model without adapters."""
  folder, config = tmp_path_factory.mktemp("base") / "run", tiny.config()
  params = {n: v for n, v in tiny.lively_model().params.items() if "position_embedding" not in n}
  checkpoint.open_workdir(folder, config, TK)
  saver = Checkpointer(folder, RunConfig())
  saver.save(TrainState(step=jnp.int32(1), trained=params, frozen={}, moments={}, ema={}))
  saver.close()
  return folder


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
  """(directory of a LoRA run that starts with it, its result, its parameters at step 0)."""
  folder, first = tmp_path_factory.mktemp("adapted") / "run", {}

  def noted(*args):
    state = initial_state.first_state(*args)
    first.update({n: np.asarray(v) for n, v in state.params.items()})
    assert set(state.trained) == lora.names(state.params)
    assert all(v.sharding.spec[1] == "fsdp" for n, v in state.trained.items() if n.endswith(("q_lora_a", "up_lora_a")))
    return state

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "first_state", noted)
    result = train(folder, tiny.config(**LORA, run__init_from=[["", str(base)]]))
  return folder, result, first


def test_adapters_learn_beside_weights_that_stay_as_they_were(base, adapted):
  folder, result, first = adapted
  model, config = oj.load(base), checkpoint.load_config(folder)
  start = Model.create(config, first, TK)
  np.testing.assert_array_equal(outputs(start), outputs(model))  # B is zero
  own = lora.names(result.params)
  assert len(own) == 14
  for name, value in result.params.items():
    assert np.array_equal(value, first[name]) == (name not in own), name
  for name, value in model.params.items():
    np.testing.assert_array_equal(value, result.params[name], err_msg=name)
  found = losses(folder)
  assert np.mean(found[-2:]) < 0.95 * np.mean(found[:2]), found


def test_merged_weights_go_out_under_published_names_and_come_back(adapted, tmp_path, capsys):
  folder, result, _ = adapted
  assert cli.main(["convert", f"--from={folder}", f"--to={tmp_path / 'out'}", "--format=huggingface"]) == 0
  assert "the adapters of 7 stacked weights are merged" in capsys.readouterr().out
  inside, out = oj.load(folder), oj.load(tmp_path / "out")  # sums in another order
  assert digest(inside.params) == result.params_digest
  assert lora.names(inside.params) and not lora.names(out.params) and not out.config.model.lora.rank
  np.testing.assert_allclose(outputs(out), outputs(inside), atol=1e-4, rtol=1e-5)
  assert cli.main(["convert", f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'native'}"]) == 0
  again = checkpoint.load_params(tmp_path / "native")
  for name, value in out.params.items():
    np.testing.assert_array_equal(value, again[name], err_msg=name)
  document = tiny.TinySource()[0]
  assert inside.generate([document], respond="text") == out.generate([document], respond="text")


def test_what_a_run_goes_on_from_has_the_same_adapters_or_none(adapted, tmp_path):
  folder, result, _ = adapted
  changes = LORA | dict(run__init_from=[["", str(folder)]], mesh__fsdp=1, mesh__tensor=1)
  config = tiny.config(**changes)
  initial_state.check_sources(config, tmp_path / "new", TK)
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  layout, _ = plan_run(config, task(config).init, optimizer=make_optimizer(config.optimizer, config.run), mesh=mesh)
  values = initial_state.initial_values(config, layout)
  assert digest(values) == result.params_digest
  saver = Checkpointer(shutil.copytree(folder, tmp_path / "again"), config.run)
  state = saver.restore_newest(layout.shapes, layout.shardings)  # with its moments, on another mesh
  saver.close()
  assert int(state.step) == 6 and digest(state.params) == result.params_digest
  assert set(state.trained) == lora.names(values)
  assert sum(m.size for m in jax.tree.leaves(state.moments) if m.ndim) == 2 * sum(v.size for v in state.trained.values())
  for other, message in (
      (dict(model__lora__alpha=16.0), "model.lora.alpha=8.0, and means nothing with 16.0: set it to 8.0, or merge"),
      (dict(model__lora__rank=0), "model.lora.rank=4, and means nothing with 0: set it to 4, or merge"),
      (dict(model__lora__targets=["mlp/.*"]), "model.lora.targets="),
  ):
    with pytest.raises(BadRequest) as refused:
      initial_state.check_sources(tiny.config(**changes | other), tmp_path / "new", TK)
    assert message in str(refused.value)
  with pytest.raises(BadRequest, match="model.lora.alpha differs"):
    checkpoint.check_workdir(folder, tiny.config(**LORA | dict(model__lora__alpha=1.0)))


def test_a_head_of_codes_draws_as_before_once_adapters_are_merged(tmp_path, capsys):
  """The LM head over the image rows draws, and no adapter stands beside it."""
  part = "vision_tokenizer/"  # its codebook is the embedding's too, as in all that is published
  vqgan = {n.removeprefix(part): v for n, v in tiny.lively_model().params.items() if n.startswith(part)}
  np.savez(tmp_path / "vqgan.npz", **vqgan)
  more = dict(run__steps=3, optimizer__learning_rate=0.1, run__init_from=[[part, str(tmp_path / "vqgan.npz")]])
  config = tiny.config(**LORA | tiny.SYSTEMS["chameleon"] | more)
  result = train(tmp_path / "run", config)
  assert lora.names(result.params)
  assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'out'}", "--format=huggingface"]) == 0
  assert "are merged" in capsys.readouterr().out
  inside, out = oj.load(tmp_path / "run"), oj.load(tmp_path / "out", image_head="codes")
  np.testing.assert_allclose(outputs(out), outputs(inside), atol=1e-4, rtol=1e-5)
  prompt = oj.document("a red box")
  drawn = [m.generate([prompt], respond="image", sampling=inside.config.sampling)[0].images[-1].pixels for m in (inside, out)]
  np.testing.assert_array_equal(*drawn)

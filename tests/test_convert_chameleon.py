"""A Chameleon or Anole that stays one: it draws codes, as its own code does, and goes out as it came."""

import dataclasses
import json
import shutil

from converting import convert, refused
from flax import nnx
import jax.numpy as jnp
import numpy as np
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax.config import DiffusionConfig, ImageHeadConfig, RunConfig, VisionEmbeddingConfig
from orthus_jax.errors import BadRequest
from orthus_jax.interop import huggingface
from orthus_jax.models.orthus import Orthus
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import initial_state
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import TrainState, plan_state

CODES = "--image-head=codes"
CHAMELEON = ["ChameleonForConditionalGeneration"]
SMALL = {"width": 8, "blocks": 1}  # a head made afresh


@pytest.fixture(scope="module")
def anole(model, values, tmp_path_factory):
  """A directory that holds an Anole."""
  folder = tmp_path_factory.mktemp("anole") / "published"
  return weights.write(folder, weights.plain(values, decoder=True), model, architectures=CHAMELEON)


@pytest.fixture(scope="module")
def chameleon(anole):
  """What `orthus convert --image-head=codes` makes of it."""
  convert(f"--from={anole}", f"--to={anole.with_name('native')}", CODES)
  return anole.with_name("native")


@pytest.mark.slow
def test_a_chameleon_stays_one_and_comes_back(anole, chameleon, values, tmp_path, capsys):
  plain, config = weights.plain(values, decoder=True), checkpoint.load_config(chameleon)
  assert (config.model.image_head.kind, config.model.vision_embedding.kind) == ("codes", "argmin")
  assert (config.sampling.guidance, config.sampling.image_temperature) == (3.0, 1.0)
  params = checkpoint.load_params(chameleon)
  assert not any(n.startswith("image_head/") for n in params)
  np.testing.assert_array_equal(params["vision_embedding/codebook"], params["vision_tokenizer/codebook"])
  convert(f"--from={chameleon}", f"--to={tmp_path / 'out'}")
  assert "otherwise" not in capsys.readouterr().out  # nothing that the published code does in another way
  assert weights.same(weights.read(tmp_path / "out"), plain)
  said = json.loads((tmp_path / "out/config.json").read_text())
  assert said["architectures"] == CHAMELEON and said["orthus_jax"]["image_head"]["kind"] == "codes"
  assert said["orthus_jax"]["image_attention"] == "causal"
  # Its own export says what it is, and comes out again byte for byte.
  convert(f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'again'}")
  assert checkpoint.load_config(tmp_path / "again") == config
  assert weights.same(checkpoint.load_params(tmp_path / "again"), params)
  convert(f"--from={tmp_path / 'again'}", f"--to={tmp_path / 'twice'}")
  for file in (tmp_path / "out").iterdir():
    assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes(), file.name
  # Who asks for it still gets the start of the first stage.
  first, usual = huggingface.open_checkpoint(tmp_path / "out", image_head="diffusion"), huggingface.open_checkpoint(anole)
  assert first.config.model == usual.config.model and weights.same(first.load(), usual.load())


def test_what_cannot_be_a_chameleon(anole, orthus, native, chameleon, values, model, tmp_path, capsys):
  to = f"--to={tmp_path / 'x'}"
  error = refused(capsys, f"--from={orthus}", to, CODES)
  assert "it holds an Orthus (mlp_head.cond_embed.bias), which draws no codes: image_head=codes is for a Chameleon" in error
  half = weights.plain(values, decoder=True) | {k: v for k, v in values.items() if "codebook_in" in k}
  error = refused(capsys, f"--from={weights.write(tmp_path / 'half', half, model)}", to, CODES)
  assert "it holds an Orthus (model.codebook_in.weight)" in error
  assert "--image-head is for a conversion from" in refused(capsys, f"--from={chameleon}", to, CODES)
  for kind in ("masked", ["codes"], 3):
    folder = weights.write(tmp_path / "other", values, model, orthus_jax={"image_head": {"kind": kind}})
    error = refused(capsys, f"--from={folder}", to)
    assert f"orthus_jax.image_head.kind={kind!r} is none of diffusion, codes" in error
  with pytest.raises(BadRequest, match="image_head='masked': a published checkpoint is read with one of diffusion, codes"):
    oj.load(anole, image_head="masked")
  with pytest.raises(BadRequest, match="was trained with image_head.kind=diffusion: it can't be read with image_head=codes"):
    oj.load(native, image_head="codes")


def test_what_a_directory_says_of_sampling_holds_for_codes_where_they_have_it(values, model, tmp_path):
  plain = weights.plain(values, decoder=True)
  ours = {"sampling": {"steps": 20, "guidance": 4.0}, "vision_embedding": {"temperature": 0.5}, "diffusion": SMALL}
  folder = weights.write(tmp_path / "a", plain, model, orthus_jax=ours)
  assert huggingface.open_checkpoint(folder).config.sampling.steps == 20
  config = huggingface.open_checkpoint(folder, image_head="codes").config
  assert config.sampling == oj.SamplingConfig(guidance=4.0)


def test_a_temperature_of_noise_is_none_of_codes(values, model, tmp_path):
  ours = {"sampling": {"image_temperature": 0.0, "guidance": 4.0}, "diffusion": SMALL}
  folder = weights.write(tmp_path / "a", weights.plain(values, decoder=True), model, orthus_jax=ours)
  assert huggingface.open_checkpoint(folder).config.sampling.image_temperature == 0.0
  assert huggingface.open_checkpoint(folder, image_head="codes").config.sampling == oj.SamplingConfig(guidance=4.0)


@pytest.mark.parametrize(
    "fields",
    [dict(kind="masked", embedding="argmin", attention="full"), dict(kind="regression", embedding="soft", attention="causal")],
)
def test_other_heads_have_no_place_in_a_published_checkpoint(fields, chameleon, tmp_path, capsys):
  run = shutil.copytree(chameleon, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"]["image_head"]["kind"] = fields["kind"]
  tree["model"]["vision_embedding"]["kind"] = fields["embedding"]
  tree["model"]["transformer"]["image_attention"] = fields["attention"]
  (run / "config.json").write_text(json.dumps(tree))
  error = refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")
  assert f"no place for model.image_head.kind={fields['kind']}" in error


def test_a_codebook_of_the_embeddings_own_has_no_place_in_a_published_chameleon(chameleon, tmp_path, capsys):
  run = shutil.copytree(chameleon, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
  params = {n: jnp.asarray(v) for n, v in checkpoint.load_params(chameleon).items()}
  params["vision_embedding/codebook"] += 1
  saver = Checkpointer(run, RunConfig())
  saver.save(TrainState(step=jnp.int32(1), trained=params, frozen={}, moments={}, ema={}))
  saver.close()
  error = refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")
  assert "vision_embedding/codebook differs from vision_tokenizer/codebook" in error


@pytest.mark.slow
@pytest.mark.parametrize("kind, width", [("diffusion", 40), ("codes", 1536)])
def test_training_begins_with_a_published_chameleon(kind, width, anole, chameleon, caplog):
  """Its head is made by the run, so that it may be of any size and kind."""
  base = checkpoint.load_config(chameleon)
  model = dataclasses.replace(
      base.model, image_head=ImageHeadConfig(kind=kind), diffusion=DiffusionConfig(width=width),
      vision_embedding=VisionEmbeddingConfig(kind="soft" if kind == "diffusion" else "argmin"),
  )  # fmt: skip
  config = dataclasses.replace(base, model=model, run=RunConfig(init_from=(("", str(anole)),)))
  initial_state.check_sources(config)
  layout, _ = plan_state(
      lambda: Orthus(config.model, rngs=nnx.Rngs(params=0)), select=frozenset, ema=False,
      mesh=mesh_lib.make_mesh(config.mesh), optimizer=make_optimizer(config.optimizer, config.run),
  )  # fmt: skip
  found = initial_state.initial_values(config, layout)
  assert weights.same(found, checkpoint.load_params(chameleon))
  caplog.clear()
  with caplog.at_level("INFO"):
    initial_state._tell_of_fresh(config, layout.shapes.params, set(found))
  said = f"{anole} has no image head: this model's (model.image_head.kind=diffusion, 36 parameters) starts fresh"
  assert [r.message for r in caplog.records] == [said] * (kind == "diffusion")

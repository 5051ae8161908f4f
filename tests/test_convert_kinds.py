"""Chameleon, Anole, arrays under other names, a decoder from elsewhere: what each is made, and what it then can do."""

import json

from converting import convert, in_memory, refused
import numpy as np
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax.errors import BadRequest
from orthus_jax.inference import running, scheduler
from orthus_jax.interop import huggingface
from orthus_jax.training.checkpoints import workdir as checkpoint


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k.removeprefix("model."),
        lambda k: k.replace("model.", "model.language_model.", 1) if k.startswith(("model.layers", "model.embed")) else k,
        lambda k: f"module.{k}",
        lambda k: k.replace("model.", "language_model.model.", 1) if k.startswith("model.layers") else k,
    ],
)  # fmt: skip
def test_keys_of_other_versions(rename, model, values, tmp_path):
  folder = weights.write(tmp_path / "renamed", {rename(k): v for k, v in values.items()}, model, shards=1)
  assert weights.same(huggingface.open_checkpoint(folder).load(), in_memory(model, values))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [True, False])
def test_a_plain_chameleon_is_the_start_of_the_first_stage(decoder, model, values, tmp_path, capsys):
  plain = weights.plain(values, decoder=decoder)
  folder = weights.write(tmp_path / "chameleon", plain, model, architectures=["ChameleonForConditionalGeneration"])
  convert(f"--from={folder}", f"--to={tmp_path / 'a'}", "--seed=1")
  said = capsys.readouterr().out
  assert "diffusion head fresh" in said and ("no VQGAN decoder" in said) is not decoder
  params = checkpoint.load_params(tmp_path / "a")
  np.testing.assert_array_equal(params["vision_embedding/codebook"], params["vision_tokenizer/codebook"])
  assert any(n.startswith("vision_tokenizer/decoder/") for n in params) is decoder
  assert not params["image_head/output/kernel"].any() and params["image_head/input/kernel"].any()
  assert weights.same(params, huggingface.open_checkpoint(folder, seed=1).load())
  assert not weights.same(params, huggingface.open_checkpoint(folder, seed=2).load())
  convert(f"--from={tmp_path / 'a'}", f"--to={tmp_path / 'out'}")
  out = weights.read(tmp_path / "out")
  assert weights.same({k: out[k] for k in plain}, plain)
  assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["OrthusForConditionalGeneration"]


@pytest.mark.parametrize("prefix", ["", "model.vqmodel.", "vqmodel."])
def test_a_decoder_from_another_file(prefix, model, values, tmp_path, capsys):
  plain = {k: v for k, v in values.items() if not k.startswith(("model.vqmodel.decoder.", "model.vqmodel.post_quant"))}
  folder = weights.write(tmp_path / "chameleon", plain, model)
  vqgan = {k.removeprefix("model.vqmodel."): v for k, v in values.items() if k.startswith("model.vqmodel.")}
  weights.write_safetensors(tmp_path / "vqgan.safetensors", {prefix + k: v for k, v in vqgan.items()})
  found = huggingface.open_checkpoint(folder, decoder=tmp_path / "vqgan.safetensors")
  assert weights.same(found.load(), in_memory(model, values))
  assert found.notes == ("config.json: passed over, as nothing here reads it: a_field_of_later",)
  assert not huggingface.open_checkpoint(folder).config.model.vision_tokenizer.decoder
  weights.write_safetensors(tmp_path / "none.safetensors", {"encoder.x": np.zeros(1, np.float32)})
  capsys.readouterr()  # the note
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}", f"--decoder={tmp_path / 'none.safetensors'}")
  assert "none.safetensors holds no array called decoder.*" in error
  average = {f"model_ema.{k}": v * 0 for k, v in vqgan.items()}
  weights.write_safetensors(tmp_path / "two.safetensors", {prefix + k: v for k, v in vqgan.items()} | average)
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}", f"--decoder={tmp_path / 'two.safetensors'}")
  assert "--decoder: model_ema.decoder.conv_in.bias is there twice, under two names" in error


@pytest.mark.slow
def test_models_that_cannot_draw_refuse_to(model, values, tmp_path, monkeypatch):
  ran = []

  class Ends:
    """In the place of a scheduler: every request ends at once."""

    def __init__(self, *_):
      self.busy = 0

    def join(self, ticket, request):
      ran.append("image" if request.max_images else "text")
      self.busy += 1
      return True

    def step(self, *, others):
      self.busy, nothing = 0, np.zeros(0, np.int32)
      return [scheduler.Progress(0, nothing, nothing, done=True)]

  monkeypatch.setattr(running, "Scheduler", Ends)
  folder = weights.write(tmp_path / "chameleon", weights.plain(values, decoder=False), model)
  blind = oj.load(folder)
  with pytest.raises(BadRequest, match="no VQGAN decoder, so it can't draw"):
    oj.generate(blind, oj.document("a red house"), respond="image")
  oj.generate(blind, oj.document("a red house"), respond="auto")
  assert ran == ["text"]
  convert(f"--from={folder}", f"--to={tmp_path / 'native'}")
  with pytest.raises(BadRequest, match="no VQGAN decoder, so it can't draw"):
    oj.generate(oj.load(tmp_path / "native"), oj.document("a red house"), respond="image")
  anole = oj.load(weights.write(tmp_path / "anole", weights.plain(values, decoder=True), model))
  with pytest.raises(BadRequest, match="image head is untrained and would draw noise"):
    oj.generate(anole, oj.document("a red house"), respond="image")
  oj.generate(oj.load(weights.write(tmp_path / "orthus", values, model)), oj.document("a house"), respond="image")
  assert ran == ["text", "image"]


def test_a_swin_model_goes_in_and_out(tmp_path):
  model = weights.model_config(swin=True)
  values = weights.arrays(model)
  folder = weights.write(tmp_path / "published", values, model)
  convert(f"--from={folder}", f"--to={tmp_path / 'native'}")
  assert checkpoint.load_config(tmp_path / "native").model.transformer.norm_placement == "swin"
  convert(f"--from={tmp_path / 'native'}", f"--to={tmp_path / 'out'}")
  assert weights.same(weights.read(tmp_path / "out"), values)

"""Real photographs: a tokenizer trained on them, a model on top of it, a picture out of that."""

import json
from pathlib import Path

from command import orthus
import pytest

from orthus_jax.data import images

ROOT = Path(__file__).parent.parent
NAMES = ("astronaut", "coffee", "rocket", "chelsea")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  data = pytest.importorskip("skimage.data")
  folder = tmp_path_factory.mktemp("photographs")
  rows = []
  for name in NAMES:
    images.save_png(folder / f"{name}.png", getattr(data, name)())
    rows.append(json.dumps({"image": f"{name}.png", "text": f"a picture of {name}"}))
  rows.append(json.dumps({"segments": [{"text": "first"}, {"image": "coffee.png"}, {"text": "then"}, {"image": "rocket.png"}]}))
  (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
  return folder


@pytest.mark.slow
def test_photographs(photographs, tmp_path):
  small = [
      f"--config.data.path={photographs}", "--config.model.vision_tokenizer.base_channels=8",
      "--config.model.vision_tokenizer.resolution=32", "--config.model.vision_tokenizer.norm_groups=4",
  ]  # fmt: skip
  tokenizer, run = tmp_path / "tokenizer", tmp_path / "run"
  argv = ["train", f"--config={ROOT}/configs/folder.py:tokenizer", f"--workdir={tokenizer}", *small]
  logged = ["--config.run.log_every=10", "--config.run.sample_every=10"]
  orthus(*argv, "--config.run.steps=20", "--config.run.batch_size=8", *logged)
  assert [p.name for p in (tokenizer / "samples").iterdir()] == ["000010.png"]  # the report has the last step's
  errors = [json.loads(line)["squared_error"] for line in (tokenizer / "metrics.jsonl").read_text().splitlines()]
  assert (tokenizer / "reconstructions.png").is_file() and errors[-1] < errors[0]
  model = [
      "--config.model.transformer.width=32", "--config.model.transformer.mlp_width=64",
      "--config.model.transformer.layers=2", "--config.model.transformer.heads=4",
      "--config.model.transformer.kv_heads=4", "--config.model.transformer.head_dim=8",
      "--config.model.diffusion.width=32", "--config.model.diffusion.blocks=1", "--config.data.sequence_length=128",
      "--config.sampling.steps=4", "--config.sampling.max_new_tokens=32",
  ]  # fmt: skip
  argv = ["train", f"--config={ROOT}/configs/folder.py:{tokenizer}", f"--workdir={run}", *small, *model]
  orthus(*argv, "--config.run.steps=12", "--config.run.sample_every=6")
  rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["step"] == 12
  assert (run / "report.html").read_text().count("data:image/png") >= 1
  out = tmp_path / "out.png"
  argv = ["generate", str(run), "--prompt=a picture of coffee", "--respond=image", f"--out={out}"]
  orthus(*argv)
  assert images.load_image(out).shape == (32, 32, 3)

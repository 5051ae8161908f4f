"""Your own pictures: a folder with a JSON-lines file of {"image": …, "text": …} or {"segments": […]} rows.

Starts from nothing but the shapes tokenizer's architecture at 64 pixels: train the vision tokenizer on your pictures
first, then the model on top of it.

    orthus train --config=configs/folder.py:tokenizer --workdir=runs/mine_tokenizer --config.data.path=DIR
    orthus train --config=configs/folder.py:runs/mine_tokenizer --workdir=runs/mine --config.data.path=DIR

Arguments: the vision tokenizer's run, `tokenizer` to train one, or `runlocal` for a few steps of an untrained model.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "runlocal") -> ConfigDict:
  """The config; see above for `arg`."""
  config = ConfigDict()
  config.task = "vision_tokenizer" if arg == "tokenizer" else "orthus"
  config.model = dict(
      transformer=dict(
          vocab_size=1024, width=256, mlp_width=640, layers=6, heads=8, kv_heads=8, head_dim=32, max_positions=1024,
          dtype="float32", remat="none", merge_positions=True,
      ),
      vision_tokenizer=dict(
          resolution=64, base_channels=16, channel_multipliers=(1, 2, 4, 4), res_blocks=1, latent_dim=16, codes=512,
          norm_groups=8,
      ),
      diffusion=dict(width=256, blocks=3, latent_scale=1.0, draws=4, loss_weight=2.0),
  )  # fmt: skip
  config.data = dict(
      source="jsonl", path="", sequence_length=512, images_per_row=6, learnt_images_per_row=4, cache_features=True,
      caption_dropout=0.1,
  )  # fmt: skip
  config.sampling = dict(steps=50, guidance=3.0, unconditional_prompt="generate an image", max_new_tokens=256)
  if arg == "tokenizer":
    config.tokenizer_loss = dict(commitment=0.02, noise=0.15)
    config.optimizer = dict(learning_rate=1e-3, warmup_steps=100, schedule="cosine", ema_decay=0.998, trainable=(".*",))
    config.run = dict(steps=4000, batch_size=16, log_every=50, checkpoint_every=1000, report=True)
    return config
  config.optimizer = dict(learning_rate=1e-3, warmup_steps=100, schedule="cosine", weight_decay=0.02, ema_decay=0.995)
  config.run = dict(steps=2000, batch_size=8, log_every=10, sample_every=250, checkpoint_every=500, report=True)
  if arg == "runlocal":
    config.run.update(steps=4, batch_size=2, log_every=1, sample_every=0, checkpoint_every=0)
  else:
    config.run.init_from = (("vision_tokenizer/", arg),)
  return config

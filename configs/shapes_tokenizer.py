"""The vision tokenizer of the quickstart, whose trained weights the package ships.

    orthus train --config=configs/shapes_tokenizer.py --workdir=runs/shapes_tokenizer

Arguments: `:runlocal` for a few steps on tiny data.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """The config; `arg` is "" or "runlocal"."""
  runlocal = arg == "runlocal"
  config = ConfigDict()
  config.task = "vision_tokenizer"
  config.model = dict(
      transformer=dict(vocab_size=1024),
      vision_tokenizer=dict(
          resolution=32, base_channels=16, channel_multipliers=(1, 2, 4, 4), res_blocks=1, latent_dim=16, codes=512,
          norm_groups=8,
      ),
  )  # fmt: skip
  config.data = dict(source="shapes")
  config.tokenizer_loss = dict(
      commitment=0.02, codebook=1.0, quantised_share=0.5, noise=0.15, l1=0.5, revive_every=50, whiten=0.5
  )
  config.optimizer = dict(
      learning_rate=1e-3, warmup_steps=100, schedule="cosine", b1=0.9, b2=0.99, ema_decay=0.998, trainable=(".*",)
  )
  config.run = dict(
      steps=8 if runlocal else 4000, batch_size=8 if runlocal else 32, log_every=2 if runlocal else 50,
      checkpoint_every=0 if runlocal else 1000, report=True,
  )  # fmt: skip
  return config

"""The quickstart: a small Orthus on the built-in world, in ten minutes to half an hour on two CPU cores.

    orthus train --config=configs/shapes.py --workdir=runs/shapes
    orthus train --config=configs/shapes.py --workdir=runs/shapes --config.run.batch_size=8     # on 8 GPUs: a row each

Arguments, several with commas between them: `:runlocal` for a few steps; `:fast` for half the time, `:long` for three times as
many steps, from fewer and more documents; `:direct` to draw at once, without an outline in words ahead of the picture;
`:chameleon`, `:showo`, `:regression`, `:argmin`, `:linear` for the systems and ablations that the paper compares Orthus with
(docs/systems.md); `:decoder` fine-tunes the vision tokenizer's decoder alone, as docs/decoder.md tells:

    orthus train --config=configs/shapes.py:decoder --workdir=runs/shapes_decoder
    orthus train --config=configs/shapes.py --workdir=runs/shapes \\
        "--config.run.init_from=(('vision_tokenizer/','runs/shapes_decoder'),)"
"""

from ml_collections import ConfigDict

NO_OUTLINES = (
    ("outline", 0), ("planned_caption", 0), ("planned_edit", 0), ("planned_story", 0), ("planned_question", 0),
    ("planned_brief_question", 0),
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
  """The config; `arg` holds words of those above."""
  words = arg.split(",") if arg else []
  known = ("runlocal", "fast", "long", "direct", "decoder", *SYSTEMS)
  if unknown := set(words) - set(known):
    raise ValueError(f"configs/shapes.py has no argument {min(unknown)!r}: {', '.join(known)}")
  if len(systems := sorted(set(words) & set(SYSTEMS))) > 1:
    raise ValueError(f"configs/shapes.py: {systems[0]} and {systems[1]} don't go together; leave one out")
  if "fast" in words and (other := {"direct", "long"} & set(words)):
    raise ValueError(f"configs/shapes.py: fast and {min(other)} don't go together; leave one out")
  config = ConfigDict()
  config.task = "orthus"
  config.model = dict(
      transformer=dict(
          vocab_size=1024, width=192, mlp_width=512, layers=5, heads=4, kv_heads=4, head_dim=48, max_positions=512,
          dtype="float32", matmul_precision="auto", remat="none", scan_unroll=5, merge_positions=True, embedding_std=0.5,
      ),
      vision_tokenizer=dict(
          resolution=32, base_channels=16, channel_multipliers=(1, 2, 4, 4), res_blocks=1, latent_dim=16, codes=512,
          norm_groups=8,
      ),
      # The projection keeps what lies between codes; with the noise, what is drawn wrong is read right (docs/notes).
      vision_embedding=dict(
          fresh_rows="projected", temperature=2.0, patch_positions=True, projection=True, history_noise=0.4
      ),
      diffusion=dict(width=192, blocks=3, latent_scale=1.25, draws=2, loss_weight=7.0),
  )  # fmt: skip
  config.data = dict(
      source="shapes", sequence_length=208, images_per_row=8, learnt_images_per_row=6, cache_features=True,
      caption_dropout=0.1, text_length_power=0.5, turns="separate",
      # Brief questions first: finding what a word means is learnt on them, and worded questions lean on it.
      kinds=(
          ("planned_caption", 0.8), ("image_to_caption", 0.3), ("outline", 0.65), ("planned_brief_question", 1.0),
          ("planned_edit", 0.45), ("planned_story", 0.65),
      ),
      later_kinds=(
          (830, (
              ("planned_caption", 0.8), ("image_to_caption", 0.4), ("outline", 0.65), ("planned_brief_question", 0.45),
              ("planned_question", 0.9), ("planned_edit", 1.3), ("planned_story", 0.9),
          )),
      ),
  )  # fmt: skip
  config.sampling = dict(
      steps=25, guidance=2.0, image_guidance=1.5, image_temperature=0.5, unconditional_prompt="generate an image",
      max_new_tokens=160, plan=True,
  )
  config.optimizer = dict(
      name="muon", learning_rate=4e-3, warmup_steps=80, schedule="linear", final_fraction=0.02, b2=0.99,
      weight_decay=0.02, ema_decay=0.995, newton_schulz_steps=3,
  )  # fmt: skip
  config.run = dict(
      steps=2700, batch_size=6, log_every=10, sample_every=1000, checkpoint_every=500, report=True,
      init_from=(("vision_tokenizer/", "asset:shapes_vqgan"),),
  )  # fmt: skip
  for word in words:
    if word in SYSTEMS:
      SYSTEMS[word](config)
  if "fast" in words:
    _train_shorter(config)
  if "long" in words:
    _train_longer(config)
  if "direct" in words:
    _direct(config, long="long" in words)
  if "decoder" in words:
    _decoder(config)
  if "runlocal" in words:
    config.run.update(steps=8, batch_size=4, log_every=2)
  return config


def _regression(config: ConfigDict) -> None:
  """The next feature as the state's prediction of it, by squared error."""
  config.model.image_head = dict(kind="regression")
  del config.model.diffusion["draws"]
  del config.sampling["steps"], config.sampling["image_temperature"]


def _embedding(config: ConfigDict, kind: str) -> None:
  config.model.vision_embedding.kind = kind
  del config.model.vision_embedding["temperature"], config.model.vision_embedding["projection"]
  if kind == "linear":
    del config.model.vision_embedding["fresh_rows"]


def _argmin(config: ConfigDict) -> None:
  """A feature enters as the row of its nearest code."""
  _embedding(config, "argmin")


def _linear(config: ConfigDict) -> None:
  """A feature enters by a projection."""
  _embedding(config, "linear")


def _chameleon(config: ConfigDict) -> None:
  """Codes in, codes out by the LM head, one after the other."""
  _embedding(config, "argmin")
  del config.model["diffusion"], config.model.vision_embedding["history_noise"]  # a code is drawn as it is
  config.model.image_head = dict(kind="codes", loss_weight=1.0)
  del config.sampling["steps"], config.sampling["image_temperature"]


def _showo(config: ConfigDict) -> None:
  """Codes in, hidden codes out, all of a picture at once and over again; full attention within pictures."""
  _embedding(config, "argmin")
  del config.model["diffusion"], config.model.vision_embedding["history_noise"]
  config.model.image_head = dict(kind="masked", loss_weight=1.0)
  config.model.transformer.image_attention = "full"
  config.sampling.steps = 8
  del config.sampling["image_temperature"]


SYSTEMS = {
    "regression": _regression, "argmin": _argmin, "linear": _linear, "chameleon": _chameleon, "showo": _showo,
}  # fmt: skip


def _decoder(config: ConfigDict) -> None:
  """The shipped vision tokenizer goes on, without what makes its features."""
  config.task = "vision_tokenizer"
  config.data = dict(source="shapes")
  config.tokenizer_loss = dict(
      commitment=0.0, codebook=0.0, quantised_share=0.0, revive_every=0, noise=0.1, l1=0.5, adversarial=0.0
  )
  config.optimizer = dict(
      learning_rate=2e-4, warmup_steps=50, schedule="cosine", b1=0.9, b2=0.99, ema_decay=0.99,
      trainable=(r"decoder/.*", r"post_quant_conv/.*", r"discriminator/.*"),
  )  # fmt: skip
  config.run = dict(
      steps=500, batch_size=32, log_every=10, checkpoint_every=250, report=True, init_from=(("", "asset:shapes_vqgan"),)
  )


def _train_shorter(config: ConfigDict) -> None:
  """Half the time: two fifths of the steps, from half the documents, which take a third of a minute to make and to encode."""
  config.run.update(steps=1100, sample_every=600)
  config.data.documents = (
      ("planned_caption", 2500), ("image_to_caption", 1500), ("outline", 2750), ("planned_brief_question", 3000),
      ("planned_question", 3000), ("planned_edit", 5500), ("planned_story", 1500),
  )  # fmt: skip
  ((_, kinds),) = config.data.later_kinds
  config.data.later_kinds = ((340, kinds),)


def _train_longer(config: ConfigDict) -> None:
  """More steps need more documents, or edits and stories are learnt by heart."""
  config.run.steps = 8100
  config.data.documents = (
      ("planned_caption", 15000), ("image_to_caption", 9000), ("outline", 16500), ("planned_brief_question", 18000),
      ("planned_question", 18000), ("planned_edit", 33000), ("planned_story", 9000),
  )  # fmt: skip
  ((_, kinds),) = config.data.later_kinds
  config.data.later_kinds = ((2500, kinds),)


def _direct(config: ConfigDict, *, long: bool) -> None:
  """As it was before outlines, and as the paper has it: a picture follows its prompt at once."""
  config.sampling.update(plan=False, guidance=3.0)
  if "image_temperature" in config.sampling:
    config.sampling.image_temperature = 1.0
  if "temperature" in config.model.vision_embedding:  # what the study's and the recipe's figures were made with
    config.model.vision_embedding.update(temperature=0.3, projection=False)
  if "diffusion" in config.model:
    config.model.diffusion.loss_weight = 5.0
  config.model.vision_embedding.history_noise = 0.0
  config.data.update(text_length_power=1.0, sequence_length=160, images_per_row=6, learnt_images_per_row=5)
  config.run.batch_size = 8
  if long:
    config.run.steps = 5040
    config.data.documents = (
        ("caption_to_image", 16000), ("crowd_to_image", 20000), ("image_to_caption", 8000), ("brief_question", 8000),
        ("question", 16000), ("copy", 4000), ("edit", 12000), ("story", 8000), *NO_OUTLINES,
    )  # fmt: skip
    config.data.kinds = (
        ("caption_to_image", 1.0), ("crowd_to_image", 0.5), ("image_to_caption", 0.5), ("brief_question", 1.0), ("copy", 0.5),
        ("edit", 0.3), ("story", 0.3),
    )  # fmt: skip
    config.data.later_kinds = (
        (1000, (
            ("caption_to_image", 1.0), ("crowd_to_image", 1.0), ("image_to_caption", 0.6), ("brief_question", 0.4),
            ("question", 0.8), ("copy", 0.3), ("edit", 1.0), ("story", 0.6),
        )),
    )  # fmt: skip
    return
  config.data.documents = (
      ("caption_to_image", 9000), ("image_to_caption", 1800), ("question", 7600), ("edit", 350), ("story", 400),
      ("brief_question", 5500), *NO_OUTLINES,
  )  # fmt: skip
  config.data.kinds = (
      ("caption_to_image", 1.1), ("image_to_caption", 0.65), ("brief_question", 1.1), ("edit", 0.55), ("story", 0.75),
  )
  config.run.steps = 1680
  config.data.later_kinds = (
      (560, (
          ("caption_to_image", 1.05), ("image_to_caption", 0.75), ("brief_question", 0.65), ("question", 1.2), ("edit", 0.55),
          ("story", 0.85),
      )),
  )  # fmt: skip

"""Typed, frozen configs, built once from an ml_collections ConfigDict at the edge.

Everything below the command line sees these dataclasses alone. `from_dict` refuses a field that it doesn't know,
naming the nearest one, and a value of the wrong type; each class's `__post_init__` refuses values that can't work together.
Defaults are the published 7B model's, as its released code runs it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.data import DataConfig
from orthus_jax.config.image_head import check_sampling
from orthus_jax.config.model import ModelConfig
from orthus_jax.config.optimizer import OptimizerConfig
from orthus_jax.config.ranges import Count, Range, Seed, Share, Sometimes, Weight, Whole
from orthus_jax.config.sampling import SamplingConfig
from orthus_jax.config.typed import UserPath, require


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
  """Training of the vision tokenizer.

  Attributes:
    commitment: beta of the VQ loss, pulling features towards their codes.
    codebook: weight of the codes' pull towards features.
    quantised_share: share of the pictures decoded from their codes; the rest is decoded from unquantised features,
      as Orthus does.
    noise: standard deviation of noise added to unquantised features, so that the decoder forgives the diffusion head's
      small errors; it also keeps the commitment from shrinking the features to nothing.
    whiten: how far the features of weights.npz are whitened (`training/whitening.py`): directions of variance s are
      scaled by s ** (-whiten / 2). Unquantised pictures stay the same; a diffusion head learns even features faster.
    l1: share of absolute (against squared) error in the reconstruction loss.
    revive_every: steps between replacements of codes that nobody used by fresh features.
    perceptual: weight of the LPIPS distance between a picture and its reconstruction; 0: none is computed.
    perceptual_weights: a safetensors file with VGG-16's and LPIPS' weights (docs/decoder.md).
    adversarial: weight of what a discriminator, trained beside the decoder at the same learning rate, makes of
      reconstructions; 0: there is none.
    adversarial_start: steps before it, and its training, begin.
    discriminator_channels: of its first convolution, a multiple of 8.
    held_out: pictures that training never sees, whatever the seed; reconstruction is scored on them. 0: none, and it is
      scored on the built-in world's test split, or on pictures that were trained on.
  """

  commitment: Weight = 0.25
  codebook: Weight = 1.0
  quantised_share: Share = 0.5
  noise: Annotated[float, Range(0, 1e3)] = 0.0
  whiten: Share = 0.0
  l1: Share = 0.5
  revive_every: Sometimes = 50
  perceptual: Weight = 0.0
  perceptual_weights: UserPath = ""
  adversarial: Weight = 0.0
  adversarial_start: Whole = 0
  discriminator_channels: Annotated[int, Range(8, 1024)] = 64
  held_out: Whole = 0

  def __post_init__(self):
    ranges.check(self, "tokenizer_loss")
    require(
        self.discriminator_channels % 8 == 0,
        f"tokenizer_loss.discriminator_channels={self.discriminator_channels} must be a multiple of 8",
    )
    require(
        not self.perceptual or bool(self.perceptual_weights),
        f"tokenizer_loss.perceptual={self.perceptual:g} needs VGG-16's and LPIPS' weights: set"
        " tokenizer_loss.perceptual_weights=FILE, which docs/decoder.md says how to make",
    )


_Axis = Annotated[int, Range(1, 2**20, also=(-1,), note="-1 takes the rest")]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per mesh axis; -1 stands for all that the other axes leave.

  Attributes:
    data: copies of the whole model (between slices).
    fsdp: parameters and batch are split.
    tensor: heads, MLP and vocabulary are split.
    context: positions are split.
  """

  data: _Axis = 1
  fsdp: _Axis = -1
  tensor: _Axis = 1
  context: _Axis = 1

  def __post_init__(self):
    ranges.check(self, "mesh")
    rest = [f"mesh.{name}" for name, size in dataclasses.asdict(self).items() if size == -1]
    require(len(rest) <= 1, f"{' and '.join(rest)} are -1, but only one axis can take the rest")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The loop.

  Attributes:
    steps: how many.
    batch_size: rows of the global batch.
    seed: of initialisation, data order and every random draw.
    init_from: where the parameters start: pairs of (parameter name prefix, checkpoint or shipped weights).
    resume_from: a run, or one of its checkpoints, whose whole state (parameters, moments, average, step) this one goes on
      from, as long as it has no checkpoint of its own; empty: none.
    log_every: steps between metric records.
    loggers: where these go beside the workdir's metrics.jsonl: "tensorboard", "wandb", "mlflow".
    sample_every: steps between picture grids and text samples, or a vision tokenizer's reconstructions; 0 never.
    evaluate: (benchmark, steps) pairs, scored every so many steps as metrics: "shapes" and "geneval" are the built-in world's,
      "mme:DIR", "pope:DIR", "gqa:DIR", "vqav2:DIR" and "mmmu:DIR" those whose data lies there.
    checkpoint_every: steps between checkpoints; 0 only at the end.
    local_checkpoint_every: steps between quick ones on each machine's own disk, which a killed run goes on from when it is
      started again on the same machines and mesh; 0: none.
    local_checkpoint_dir: where these lie, such as /dev/shm/orthus for the machine's memory; empty: in $ORTHUS_CACHE.
    keep_checkpoints: how many of the newest are kept.
    keep_every: those of every so many steps are kept as well; 0: none.
    keep_best: and as many of those with the lowest training loss since the checkpoint before.
    max_skipped: an update whose loss or gradient isn't finite is skipped; so many in a row stop the run.
    spike_deviations: a loss that lies as many standard deviations above its running mean is logged; 0: none is.
    hang_timeout: seconds after which a step that doesn't end stops the process; 0: never.
    report: score the result at the end, and write report.html beside report.json, which is written in any case.
    profile_steps: (first, last) step that the profiler records into the workdir's profile/, for TensorBoard and
      Perfetto; empty: none.
    compiler_options: (option, value) pairs for the compiler of the training step, above those of `parallel/compiler.py`:
      (("xla_tpu_scoped_vmem_limit_kib", "65536"),), say.
    peak_tflops: a device's peak in 1e12 FLOP/s, which MFU is a share of; 0: the published one where it is known.
  """

  steps: Count = 1000
  batch_size: Annotated[int, Range(1, 2**24)] = 16
  seed: Seed = 0
  init_from: tuple[tuple[str, UserPath], ...] = ()
  resume_from: UserPath = ""
  log_every: Count = 10
  loggers: tuple[str, ...] = ("tensorboard",)
  sample_every: Sometimes = 0
  evaluate: tuple[tuple[str, Count], ...] = ()
  checkpoint_every: Sometimes = 0
  local_checkpoint_every: Sometimes = 0
  local_checkpoint_dir: UserPath = ""
  keep_checkpoints: Count = 2
  keep_every: Sometimes = 0
  keep_best: Sometimes = 0
  max_skipped: Count = 10
  spike_deviations: Annotated[float, Range(0, 1e6, note="0 turns it off")] = 6.0
  hang_timeout: Annotated[float, Range(0, 1e9, note="0 turns it off")] = 1800.0
  report: bool = False
  profile_steps: tuple[Count, ...] = ()
  compiler_options: tuple[tuple[str, str], ...] = ()
  peak_tflops: Annotated[float, Range(0, 1e9, note="0 means the published one")] = 0.0

  def __post_init__(self):
    ranges.check(self, "run")
    first_last = self.profile_steps
    require(
        not first_last or (len(first_last) == 2 and first_last[0] <= first_last[1]),
        f"run.profile_steps={first_last} must be (first, last) step, from 1, or empty",
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment.

  Attributes:
    task: "orthus" trains the whole model, "vision_tokenizer" the VQGAN alone.
  """

  task: Literal["orthus", "vision_tokenizer"] = "orthus"
  model: ModelConfig = ModelConfig()
  sampling: SamplingConfig = SamplingConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
  mesh: MeshConfig = MeshConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    require(
        self.run.batch_size % self.optimizer.accumulation == 0,
        f"run.batch_size={self.run.batch_size} must be a multiple of optimizer.accumulation={self.optimizer.accumulation}",
    )
    require(
        self.task != "orthus" or self.model.transformer.text_loss_weight + self.model.image_loss_weight > 0,
        "model.transformer.text_loss_weight and the image head's loss_weight are both 0: nothing would be learnt",
    )
    require(
        not self.model.transformer.merge_positions or self.mesh.context == 1,
        "model.transformer.merge_positions needs mesh.context=1: it would merge the axis that the mesh splits",
    )
    require(
        self.task == "orthus" or self.model.vision_tokenizer.decoder,
        "task=vision_tokenizer needs model.vision_tokenizer.decoder=True: it trains the decoder too",
    )
    for judge, least in (("perceptual", 16), ("adversarial", 8)):
      require(
          not getattr(self.tokenizer_loss, judge) or self.model.vision_tokenizer.resolution >= least,
          f"tokenizer_loss.{judge} needs pictures of {least} pixels a side at least, not"
          f" model.vision_tokenizer.resolution={self.model.vision_tokenizer.resolution}",
      )
    require(
        self.task == "orthus" or self.model.lora.rank == 0,
        "task=vision_tokenizer has no layers to adapt: set model.lora.rank=0",
    )
    if self.task == "orthus":
      check_sampling(self.model.image_head.kind, self.sampling)
      need = self.model.vision_tokenizer.patches + 4
      require(
          self.data.sequence_length >= need,
          f"data.sequence_length={self.data.sequence_length} is too short for one image of"
          f" {self.model.vision_tokenizer.patches} patches: set it to at least {need}"
          " (model.vision_tokenizer's resolution and channel_multipliers say how many)",
      )
      require(
          self.data.sequence_length <= self.model.transformer.max_positions,
          f"data.sequence_length={self.data.sequence_length} is beyond"
          f" model.transformer.max_positions={self.model.transformer.max_positions}",
      )

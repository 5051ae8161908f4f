"""The step of `benchmarks/train_step.py` in PyTorch: the same architecture, batch, losses and optimizer.

Written over named parameters as orthus_jax has them, so that both start from the same numbers and the text losses can be
compared. Fused attention and fused AdamW: what a PyTorch user would write. Weights kept in float32 are cast to the compute
dtype once a step, as orthus_jax casts them. Eager, or compiled: a layer, the LM head's loss and the image head's, each by
`torch.compile`, and attention by FlexAttention, which passes over the blocks that no position sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from orthus_jax.config import Config
from orthus_jax.diffusion import process


class Step:
  """One trainer: `step()` updates the parameters and returns (loss, text loss).

  Args:
    config: the step's; parameters are kept in float32.
    params: arrays by name, or their shapes: then each is drawn at random.
    trained: names that are trained.
    batch: the pipeline's.
    compiled: see above; else eager.
  """

  def __init__(
      self, config: Config, params: dict[str, Any], trained: frozenset[str], batch: Any, *, compiled: bool = False
  ):
    self.config = config
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.dtype = getattr(torch, config.model.transformer.dtype)
    self.p: dict[str, torch.Tensor] = {}
    for name, value in params.items():
      if name.startswith("vision_tokenizer/"):
        continue  # features are given
      for key, part in self._layers(name, value):
        self.p[key] = self._parameter(part).requires_grad_(name in trained)
    leaves = [v for v in self.p.values() if v.requires_grad]
    o = config.optimizer
    self.optimizer = torch.optim.AdamW(
        leaves, lr=o.learning_rate, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    self.leaves = leaves
    arrays = {n: np.asarray(v) for n, v in batch._asdict().items() if v is not None}
    arrays["images"] = arrays["images"].astype(np.float32)
    self.batch = {n: torch.tensor(v, device=self.device) for n, v in arrays.items()}
    segments = self.batch["segment_ids_BT"]
    T = segments.shape[1]
    seen = segments[:, :, None] == segments[:, None, :]
    if "shared_ids_BT" in self.batch:
      seen |= self.batch["shared_ids_BT"][:, :, None] == segments[:, None, :]
    self.mask = (seen & torch.ones(T, T, dtype=torch.bool, device=self.device).tril())[:, None]
    if self.device.type == "cuda":  # what its kernels take: else each layer would turn a mask of bools into it
      self.mask = torch.zeros_like(self.mask, dtype=self.dtype).masked_fill(~self.mask, -torch.inf)
    abar = np.asarray(process.alphas_cumprod(config.model.diffusion))
    self.abar = torch.tensor(abar, dtype=torch.float32, device=self.device)
    self.blocks = None
    if compiled:
      if self.device.type == "cuda":
        self.blocks = self._blocks(segments)
      self.layer, self.text, self.diffusion = map(torch.compile, (self.layer, self.text, self.diffusion))

  def _blocks(self, segments: torch.Tensor) -> Any:
    from torch.nn.attention import flex_attention

    def seen(b, h, q, k):
      return (q >= k) & (segments[b, q] == segments[b, k])

    assert "shared_ids_BT" not in self.batch, "FlexAttention's mask knows no second segment"
    B, T = segments.shape
    return flex_attention.create_block_mask(seen, B, None, T, T, device=self.device)

  @staticmethod
  def _layers(name: str, value: Any):
    """A stacked parameter as one leaf per layer, so that no layer's gradient is as large as all of them."""
    if "/layers/" not in name:
      return [(name, value)]
    parts = value if isinstance(value, np.ndarray) else [value.update(shape=value.shape[1:])] * value.shape[0]
    return [(name.replace("/layers/", f"/{i}/"), part) for i, part in enumerate(parts)]

  def _parameter(self, value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
      return torch.tensor(value.astype(np.float32), device=self.device)
    return torch.randn(value.shape, device=self.device) * value.shape[0] ** -0.5

  def step(self) -> tuple[float, float]:
    self.optimizer.zero_grad(set_to_none=True)
    text, image = self.losses()
    loss = text + self.config.model.diffusion.loss_weight * image
    loss.backward()
    if self.config.optimizer.clip_norm > 0:
      torch.nn.utils.clip_grad_norm_(self.leaves, self.config.optimizer.clip_norm, foreach=True)
    self.optimizer.step()
    return loss.item(), text.item()

  def memory(self) -> int | None:
    """The most bytes that its arrays have taken on a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

  def cast(self, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight as it is computed in."""
    return weight if name == "vision_embedding/codebook" else weight.to(self.dtype)

  def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
    p = {n: self.cast(n, v) for n, v in self.p.items()}
    b, c = self.batch, self.config.model
    t, P = c.transformer, c.vision_tokenizer.patches
    features = b["images"]  # [B, M, P, C]
    B, M = features.shape[:2]
    v = features.reshape(B, M * P, -1)
    codes = p["vision_embedding/codebook"]
    distance = (v * v).sum(-1, keepdim=True) - 2 * v @ codes.T + (codes * codes).sum(-1)
    rows = p["token_embedding"][c.image_token_start : c.image_token_start + c.vision_tokenizer.codes]
    patches = (-distance / c.vision_embedding.temperature).softmax(-1).to(self.dtype) @ rows
    slot = b["slot_BT"].long()
    gathered = torch.take_along_dim(patches, slot.clamp(min=0)[..., None], 1)
    x = torch.where((slot >= 0)[..., None], gathered, F.embedding(b["tokens_BT"].long(), p["token_embedding"]))
    half = t.head_dim // 2
    frequency = t.rope_theta ** (-torch.arange(half, device=self.device) / half)
    angle = (b["position_BT"][..., None] * frequency)[:, :, None]
    turn = angle.cos(), angle.sin()
    for i in range(t.layers):
      start = f"transformer/{i}/"
      x = self.layer(x, {n.removeprefix(start): w for n, w in p.items() if n.startswith(start)}, turn)
    hidden = self.rms(x, p["transformer/norm/scale"])
    text = self.text(hidden, p["lm_head"])

    which, start = b["learnt_image_BG"].long(), b["learnt_start_BG"].long()
    at = (start[..., None] + torch.arange(P, device=self.device)).flatten(1)
    z = torch.take_along_dim(hidden, at[..., None], 1).reshape(*which.shape, P, -1)
    target = torch.take_along_dim(features, which.clamp(min=0)[..., None, None], 1)
    learnt = which >= 0  # an image that stands in several places counts as often here; the work is the same
    head = {n: w for n, w in p.items() if n.startswith("image_head/")}
    image = self.diffusion(z[learnt].flatten(0, 1), target[learnt].flatten(0, 1), head)
    return text, image

  def text(self, hidden, lm_head):
    """Cross-entropy."""
    logits = (hidden @ lm_head).flatten(0, 1).float()
    nll = F.cross_entropy(logits, self.batch["targets_BT"].long().flatten(), reduction="none")
    weight = self.batch["text_weight_BT"].flatten()
    return (weight * nll).sum() / weight.sum().clamp(min=1e-9)

  def rms(self, x, scale):
    return F.rms_norm(x, x.shape[-1:], scale, self.config.model.transformer.norm_eps)

  def layer(self, x, w, turn):
    t = self.config.model.transformer
    B, T, D = x.shape
    y = self.rms(x, w["attention_norm/scale"])

    def heads(kind):
      h = (y @ w[f"attention/{kind}"].reshape(D, -1)).view(B, T, -1, t.head_dim)
      if kind == "v":
        return h.transpose(1, 2)
      norm = f"attention/{kind}_norm"
      h = F.layer_norm(h, (t.head_dim,), eps=t.norm_eps) * w[f"{norm}/scale"] + w[f"{norm}/bias"]
      a, b = h.chunk(2, -1)
      return torch.cat([a * turn[0] - b * turn[1], b * turn[0] + a * turn[1]], -1).to(x.dtype).transpose(1, 2)

    q, k, v = heads("q"), heads("k"), heads("v")
    if self.blocks is not None:
      from torch.nn.attention.flex_attention import flex_attention

      o = flex_attention(q, k, v, block_mask=self.blocks, enable_gqa=t.heads != t.kv_heads)
    else:
      o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=t.heads != t.kv_heads)
    x = x + o.transpose(1, 2).reshape(B, T, -1) @ w["attention/out"].reshape(-1, D)
    y = self.rms(x, w["mlp_norm/scale"])
    return x + (F.silu(y @ w["mlp/gate"]) * (y @ w["mlp/up"])) @ w["mlp/down"]

  def diffusion(self, z, feature, p):
    """Mean squared error over positions and draws; z [X, D], feature [X, C]."""
    c = self.config.model.diffusion
    z, x0 = z.repeat_interleave(c.draws, 0), c.latent_scale * feature.repeat_interleave(c.draws, 0)
    t = torch.randint(0, c.timesteps, (len(z),), device=z.device)
    eps, abar = torch.randn_like(x0), self.abar[t][:, None]
    noised = (abar.sqrt() * x0 + (1 - abar).sqrt() * eps).to(z.dtype)

    def linear(x, name):
      return torch.addmm(p[f"{name}/bias"], x, p[f"{name}/kernel"])

    v = head(p, c.blocks, linear, noised, t, z).float()
    target = abar.sqrt() * eps - (1 - abar).sqrt() * x0 if c.target == "velocity" else eps
    return (v - target).square().mean()


def head(
    p: dict[str, torch.Tensor], blocks: int, linear: Any, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
  """The diffusion head's prediction [X, C].

  Args:
    p: parameters by name.
    blocks: how many it has.
    linear: applies one of its layers, given x and the layer's name.
    x: noised features [X, C].
    t: steps [X].
    z: states [X, D].
  """
  frequency = torch.exp(-np.log(10000.0) * torch.arange(128, device=z.device) / 128)
  angle = t[:, None] * frequency
  time = linear(torch.cat([angle.cos(), angle.sin()], -1).to(z.dtype), "image_head/time_in")
  time = linear(F.silu(time), "image_head/time_out")
  y = F.silu(time + linear(z, "image_head/condition"))
  h = linear(x, "image_head/input")
  for i in range(blocks):
    name = f"image_head/blocks/{i}"
    shift, scale, gate = linear(y, f"{name}/modulation").chunk(3, -1)
    u = F.layer_norm(h, h.shape[-1:], p[f"{name}/norm_scale"], p[f"{name}/norm_bias"], 1e-6) * (1 + scale) + shift
    h = h + gate * linear(F.silu(linear(u, f"{name}/up")), f"{name}/down")
  shift, scale = linear(y, "image_head/final_modulation").chunk(2, -1)
  return linear(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift, "image_head/output")

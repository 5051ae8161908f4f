"""The step of `benchmarks/train_step.py` in PyTorch, for a CPU: the same architecture, batch, losses and optimizer.

Written over named parameters as orthus_jax has them, so that both start from the same numbers and the text losses can be
compared. Eager mode, fused attention and fused AdamW: what a PyTorch user would write.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from orthus_jax.config import Config
from orthus_jax.diffusion import process


class Step:
  """One trainer: `step()` updates the parameters and returns (loss, text loss)."""

  def __init__(self, config: Config, params: dict[str, np.ndarray], trained: frozenset[str], batch: Any):
    self.config = config
    self.p: dict[str, torch.Tensor] = {}
    for name, value in params.items():
      if name.startswith("vision_tokenizer/"):
        continue  # features are given
      for key, part in self._layers(name, value):
        self.p[key] = torch.tensor(np.asarray(part, np.float32), requires_grad=name in trained)
    leaves = [v for v in self.p.values() if v.requires_grad]
    o = config.optimizer
    self.optimizer = torch.optim.AdamW(
        leaves, lr=o.learning_rate, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    self.leaves = leaves
    self.batch = {n: torch.tensor(np.asarray(v)) for n, v in batch._asdict().items() if v is not None}
    segments = self.batch["segment_ids_BT"]
    T = segments.shape[1]
    seen = segments[:, :, None] == segments[:, None, :]
    if "shared_ids_BT" in self.batch:
      seen |= self.batch["shared_ids_BT"][:, :, None] == segments[:, None, :]
    self.mask = (seen & torch.ones(T, T, dtype=torch.bool).tril())[:, None]
    self.abar = torch.tensor(np.asarray(process.alphas_cumprod(config.model.diffusion)), dtype=torch.float32)

  @staticmethod
  def _layers(name: str, value: np.ndarray):
    """A stacked parameter as one leaf per layer, so that no layer's gradient is as large as all of them."""
    if "/layers/" not in name:
      return [(name, value)]
    return [(name.replace("/layers/", f"/{i}/"), part) for i, part in enumerate(np.asarray(value))]

  def step(self) -> tuple[float, float]:
    self.optimizer.zero_grad(set_to_none=True)
    text, image = self.losses()
    loss = text + self.config.model.diffusion.loss_weight * image
    loss.backward()
    if self.config.optimizer.clip_norm > 0:
      torch.nn.utils.clip_grad_norm_(self.leaves, self.config.optimizer.clip_norm, foreach=True)
    self.optimizer.step()
    return float(loss), float(text)

  def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
    p, b, c = self.p, self.batch, self.config.model
    t, P = c.transformer, c.vision_tokenizer.patches
    features = b["images"].float()  # [B, M, P, C]
    B, M = features.shape[:2]
    v = features.reshape(B, M * P, -1)
    codes = p["vision_embedding/codebook"]
    distance = (v * v).sum(-1, keepdim=True) - 2 * v @ codes.T + (codes * codes).sum(-1)
    rows = p["token_embedding"][c.image_token_start : c.image_token_start + c.vision_tokenizer.codes]
    patches = (-distance / c.vision_embedding.temperature).softmax(-1) @ rows
    slot = b["slot_BT"].long()
    gathered = torch.take_along_dim(patches, slot.clamp(min=0)[..., None], 1)
    x = torch.where((slot >= 0)[..., None], gathered, F.embedding(b["tokens_BT"].long(), p["token_embedding"]))
    half = t.head_dim // 2
    frequency = t.rope_theta ** (-torch.arange(half) / half)
    angle = (b["position_BT"][..., None] * frequency)[:, :, None]
    turn = angle.cos(), angle.sin()
    for i in range(t.layers):
      x = self.layer(x, f"transformer/{i}", turn)
    hidden = self.rms(x, p["transformer/norm/scale"])

    logits = hidden @ p["lm_head"]
    nll = F.cross_entropy(logits.flatten(0, 1), b["targets_BT"].long().flatten(), reduction="none")
    weight = b["text_weight_BT"].flatten()
    text = (weight * nll).sum() / weight.sum().clamp(min=1e-9)

    which, start = b["learnt_image_BG"].long(), b["learnt_start_BG"].long()
    at = (start[..., None] + torch.arange(P)).flatten(1)
    z = torch.take_along_dim(hidden, at[..., None], 1).reshape(*which.shape, P, -1)
    target = torch.take_along_dim(features, which.clamp(min=0)[..., None, None], 1)
    learnt = which >= 0  # an image that stands in several places counts as often here; the work is the same
    image = self.diffusion(z[learnt].flatten(0, 1), target[learnt].flatten(0, 1))
    return text, image

  def rms(self, x, scale):
    return F.rms_norm(x, x.shape[-1:], scale, self.config.model.transformer.norm_eps)

  def layer(self, x, name, turn):
    p, t = self.p, self.config.model.transformer
    B, T, D = x.shape
    y = self.rms(x, p[f"{name}/attention_norm/scale"])

    def heads(kind):
      h = (y @ p[f"{name}/attention/{kind}"].reshape(D, -1)).view(B, T, -1, t.head_dim)
      if kind == "v":
        return h.transpose(1, 2)
      norm = f"{name}/attention/{kind}_norm"
      h = F.layer_norm(h, (t.head_dim,), eps=t.norm_eps) * p[f"{norm}/scale"] + p[f"{norm}/bias"]
      a, b = h.chunk(2, -1)
      return torch.cat([a * turn[0] - b * turn[1], b * turn[0] + a * turn[1]], -1).transpose(1, 2)

    o = F.scaled_dot_product_attention(
        heads("q"), heads("k"), heads("v"), attn_mask=self.mask, enable_gqa=t.heads != t.kv_heads
    )
    x = x + o.transpose(1, 2).reshape(B, T, -1) @ p[f"{name}/attention/out"].reshape(-1, D)
    y = self.rms(x, p[f"{name}/mlp_norm/scale"])
    return x + (F.silu(y @ p[f"{name}/mlp/gate"]) * (y @ p[f"{name}/mlp/up"])) @ p[f"{name}/mlp/down"]

  def linear(self, x, name):
    return torch.addmm(self.p[f"{name}/bias"], x, self.p[f"{name}/kernel"])

  def diffusion(self, z, feature):
    """Mean squared error over positions and draws; z [X, D], feature [X, C]."""
    c = self.config.model.diffusion
    z, x0 = z.repeat_interleave(c.draws, 0), c.latent_scale * feature.repeat_interleave(c.draws, 0)
    t = torch.randint(0, c.timesteps, (len(z),))
    eps, abar = torch.randn_like(x0), self.abar[t][:, None]
    v = head(self, abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t, z)
    target = abar.sqrt() * eps - (1 - abar).sqrt() * x0 if c.target == "velocity" else eps
    return (v - target).square().mean()


def head(of: Any, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
  """The diffusion head's prediction [X, C].

  Args:
    of: has the parameters `p`, the `config`, and `linear`, which applies one of its layers.
    x: noised features [X, C].
    t: steps [X].
    z: states [X, D].
  """
  frequency = torch.exp(-np.log(10000.0) * torch.arange(128) / 128)
  angle = t[:, None] * frequency
  time = of.linear(torch.cat([angle.cos(), angle.sin()], -1), "image_head/time_in")
  time = of.linear(F.silu(time), "image_head/time_out")
  y = F.silu(time + of.linear(z, "image_head/condition"))
  h = of.linear(x, "image_head/input")
  for i in range(of.config.model.diffusion.blocks):
    name = f"image_head/blocks/{i}"
    shift, scale, gate = of.linear(y, f"{name}/modulation").chunk(3, -1)
    u = F.layer_norm(h, h.shape[-1:], of.p[f"{name}/norm_scale"], of.p[f"{name}/norm_bias"], 1e-6) * (1 + scale) + shift
    h = h + gate * of.linear(F.silu(of.linear(u, f"{name}/up")), f"{name}/down")
  shift, scale = of.linear(y, "image_head/final_modulation").chunk(2, -1)
  return of.linear(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift, "image_head/output")

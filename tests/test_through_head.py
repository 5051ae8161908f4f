"""Pictures drawn again through the image head, against what the engine draws and against a head that knows."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data.documents import Image, Text, document
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import through_head
from orthus_jax.inference.model import Model


def copies(n=3):
  pictures = [tiny.TinySource()[i].images[0].pixels for i in range(0, 4 * n, 4)]
  return [dataclasses.replace(document(p, "draw a red box"), segments=(Image(p), Text("draw a red box"), Image(p, learn=True)))
          for p in pictures]  # fmt: skip


@pytest.mark.parametrize("name", ["regression", "chameleon"])
def test_each_patch_follows_from_the_true_ones_before_it(name, monkeypatch):
  """The first patch is the engine's own, and a change of a patch moves what is drawn after it alone."""
  model = tiny.lively_model(**tiny.SYSTEMS[name], model__transformer__layers=1)
  if name == "chameleon":
    model = dataclasses.replace(model, config=tiny.replace(model.config, "sampling", image_temperature=0.0))
  d = copies(1)[0]
  features = through_head.draw(model, d, key=jax.random.key(0))
  how = dataclasses.replace(model.config.sampling, guidance=1.0, image_guidance=1.0)
  shown, decode = [], Model.decode
  with monkeypatch.context() as patched:
    patched.setattr(Model, "decode", lambda self, f: shown.append(np.stack(f)) or decode(self, f))
    model.generate([dataclasses.replace(d, segments=d.segments[:2])], respond="image", sampling=how)
  np.testing.assert_allclose(features[0], shown[0][0, 0], atol=1e-4)
  other = d.images[-1].pixels.copy()
  other[-1, -1] = 255 - other[-1, -1]  # the last patch, which nothing follows
  encoded = model.encode([d.images[-1].pixels, other])
  same = np.abs(encoded[0] - encoded[1]).max(-1) < 1e-6
  again = through_head.draw(
      model, dataclasses.replace(d, segments=(*d.segments[:2], Image(other, learn=True))), key=jax.random.key(0)
  )
  first = int(np.argmin(same))  # patches up to the first that differs see the same history
  np.testing.assert_allclose(again[: first + 1], features[: first + 1], atol=1e-5)


def test_scores_are_those_of_pictures(monkeypatch):
  model, documents = tiny.lively_model(), copies()
  truth = iter(model.encode([d.images[-1].pixels for d in documents]))
  monkeypatch.setattr(through_head, "draw", lambda *_, **__: next(truth))
  found = through_head.evaluate(model, documents)
  assert found["psnr_through_head"] == found["psnr_unquantised"] != found["psnr_quantised"]


def test_what_cannot_be_drawn_so_is_refused():
  with pytest.raises(BadRequest, match="draws whole pictures"):
    through_head.evaluate(tiny.lively_model(**tiny.SYSTEMS["showo"]), copies())
  with pytest.raises(BadRequest, match="end in a picture"):
    through_head.evaluate(tiny.lively_model(), [document("red")])

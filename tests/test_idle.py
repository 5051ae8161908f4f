"""Settings of no effect are told, and no others."""

import logging

import pytest
import tiny

from orthus_jax import training_run
from orthus_jax.config import idle


@pytest.mark.parametrize("changes, said", [
    (dict(run__keep_every=2, run__keep_best=1), ["run.keep_every=2", "run.keep_best=1"]),
    (dict(run__keep_every=2, run__checkpoint_every=2), []),
    (dict(run__local_checkpoint_dir="/x"), ["run.local_checkpoint_dir=/x"]),
    (dict(run__steps=9, run__profile_steps=[10, 12]), ["run.profile_steps=(10, 12)"]),
    (dict(run__steps=9, run__profile_steps=[9, 12]), []),
    (dict(run__steps=9, run__evaluate=[["shapes", 10]]), ["run.evaluate=(('shapes', 10),)"]),
    (dict(run__steps=9, run__evaluate=[["shapes", 10], ["geneval", 9]]), []),
    (dict(optimizer__newton_schulz_steps=3, optimizer__final_fraction=0.1), [
        "optimizer.newton_schulz_steps=3", "optimizer.final_fraction=0.1"]),
    (dict(optimizer__name="muon", optimizer__newton_schulz_steps=3, optimizer__schedule="linear"), []),
    (dict(model__lora__alpha=8.0, sampling__late_from=0.2), ["model.lora.alpha=8.0", "sampling.late_from=0.2"]),
    (dict(model__lora__alpha=8.0, task="vision_tokenizer", optimizer__trainable=[".*"]), []),
    (dict(data__source="shapes", data__learn="text", data__pairs="to_image"), ["data.pairs=to_image", "data.learn=text"]),
    (dict(data__source="imagefolder", data__learn="text", data__path="x"), []),
    ({}, []),
])  # fmt: skip
def test_each_is_told_with_what_it_needs(changes, said):
  told = idle.settings(tiny.config(**changes))
  assert [t.partition(" is of no effect, as ")[0] for t in told] == said and all(t.partition(", as ")[2] for t in told)


def test_a_run_tells_of_them(caplog):
  with caplog.at_level(logging.INFO):
    training_run._tell_of_settings(tiny.config(run__steps=3, run__keep_best=1, optimizer__warmup_steps=5))
  assert "run.keep_best=1 is of no effect, as run.checkpoint_every is 0" in caplog.text
  assert "warming up for all of run.steps=3, as optimizer.warmup_steps=5 is more" in caplog.text

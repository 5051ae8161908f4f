"""Words that say what a picture is to show, ahead of it: in what is learnt, and in what is generated."""

import dataclasses
import json

import numpy as np
import plain
import pytest
import tiny

from orthus_jax.data import images
from orthus_jax.data.documents import Document, Image, Text, document
from orthus_jax.data.sequence import is_planned, layout, unconditional
from orthus_jax.data.variants import variants
from orthus_jax.errors import BadRequest
from orthus_jax.inference import live
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Finished
from orthus_jax.sweeping import pictures
from orthus_jax.training_run import sample_prompts

TK = tiny.tokenizer()
P, C = 16, 4


@pytest.fixture(scope="module")
def model():
  return tiny.lively_model(sampling__plan=True, sampling__max_new_tokens=5)


def leaning(model, prompt: Document, token: int):
  """The model with its LM head leaning towards a token."""
  eager = tiny.eager_to_draw(model, prompt).params["lm_head"][:, TK.boi]
  return dataclasses.replace(model, params=model.params | {"lm_head": model.params["lm_head"].at[:, token].set(eager)})


def response(model, prompt: Document, **how) -> tuple:
  return model.generate([prompt], respond="image", **how)[0].segments[len(prompt.segments) :]


@pytest.mark.slow
@pytest.mark.parametrize("edit, early", [(True, False), (False, True)])
def test_words_and_their_picture_agree_with_a_plain_loop(model, edit, early):
  picture = tiny.TinySource()[0].images[0].pixels
  prompt = document(picture, "draw a blue box") if edit else document("draw a red box")
  model = tiny.eager_to_draw(model, prompt) if early else model  # no word, or as many as there is room for
  sampling = dataclasses.replace(model.config.sampling, guidance=3.0, image_guidance=1.5)
  nothing = layout(unconditional(document(), sampling.unconditional_prompt), TK, patches=P, respond=True)
  branches, weights = [nothing], [3.0, -2.0]
  if edit:
    kept = layout(unconditional(prompt, sampling.unconditional_prompt, keep_images=True), TK, patches=P, respond=True)
    branches, weights = [kept, nothing], [3.0, 1.5 - 3.0, 1 - 1.5]
  items = plain.answer(
      model, layout(prompt, TK, patches=P, respond=True), seed=7, weights=weights, branches=branches, max_new=5 + P + 2,
      first_boi=False, planned=True,
  )  # fmt: skip
  found = response(model, prompt, sampling=sampling, seeds=[7])
  words = [i for i in items if isinstance(i, int)][:-2]
  assert len(words) == (0 if early else 5)
  assert [s.text for s in found[:-1]] == ([] if early else [TK.decode(words)])
  features = np.stack([i for i in items if not isinstance(i, int)])
  assert np.abs(found[-1].pixels.astype(int) - model.decode(features[None])[0].astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("system", ["chameleon", "showo"])
def test_systems_that_draw_codes_say_them_too(system):
  model = tiny.lively_model(**tiny.SYSTEMS[system] | {"sampling__plan": True, "sampling__max_new_tokens": 5})
  for prompt in (document("draw a red box"), document(tiny.TinySource()[0].images[0].pixels, "draw a blue box")):
    found = response(model, prompt)
    assert is_planned(Document(found)), found
    assert found == response(model, prompt, batch_size=1)


@pytest.mark.parametrize("token", [TK.sep, TK.eos])
def test_a_model_that_would_rather_say_nothing_draws(model, token):
  prompt = document("draw a red box")
  silent = leaning(model, prompt, token)
  assert not silent.generate([prompt], respond="text")[0].segments[1:]
  found = response(silent, prompt)
  assert is_planned(Document(found)) or len(found) == 1
  assert isinstance(found[-1], Image)
  direct = dataclasses.replace(silent.config.sampling, plan=False)
  assert [type(s) for s in response(silent, prompt, sampling=direct)] == [Image]


def test_words_leave_room_for_their_picture(model):
  longest = model.config.model.transformer.max_positions
  fixed = len(layout(document("7"), TK, patches=P, respond=True)) - 1
  for left, served in ((P + 2, True), (P + 1, False)):
    prompt = document("7" * (longest - left - fixed))
    assert len(layout(prompt, TK, patches=P, respond=True)) == longest - left
    if served:
      assert [type(s) for s in response(model, prompt)] == [Image]
    else:
      with pytest.raises(BadRequest, match="1 picture of 16 positions don't fit"):
        model.prepare(Request(prompt, respond="image"))


def test_other_answers_are_as_without(model):
  prompt, direct = document("what is this"), dataclasses.replace(model.config.sampling, plan=False)
  for respond in ("text", "auto"):
    a, b = (model.generate([prompt], respond=respond, sampling=how)[0] for how in (None, direct))
    assert a == b
  roomy = dataclasses.replace(model.config.sampling, max_new_tokens=2 * (P + 2))
  (silent,) = leaning(model, prompt, TK.sep).generate([prompt], sampling=roomy)  # it may end without a picture
  assert silent.segments == prompt.segments


def test_an_open_batch_takes_both_kinds(model):
  prompt, direct = document("draw a red box"), dataclasses.replace(model.config.sampling, plan=False)
  expected = [response(model, prompt, sampling=how, seeds=[3]) for how in (None, direct)]
  assert [[type(s) for s in wanted] for wanted in expected] == [[Text, Image], [Image]]
  engine = live.Engine(model, live.Limits(rows=2, guides=2, slots=64))
  engine.start()
  try:
    tickets = [engine.submit(Request(prompt, respond="image", seed=3, sampling=how)) for how in (None, direct)]
    for ticket, wanted in zip(tickets, expected):
      (end,) = [e for e in ticket.events(timeout=120) if isinstance(e, Finished)]
      found = end.document.segments[1:]
      assert [type(s) for s in found] == [type(s) for s in wanted]
      assert [s.text for s in found[:-1]] == [s.text for s in wanted[:-1]]
      assert np.abs(found[-1].pixels.astype(int) - wanted[-1].pixels.astype(int)).max() <= 1
  finally:
    engine.close()


def test_planned_documents_ask_for_pictures_in_samples_and_sweeps(tmp_path):
  picture = tiny.TinySource()[0].images[0].pixels
  words, drawn = Text("a red box", True), Image(picture, True)
  planned = [Document((Text(f"draw {i}"), words, drawn), id=str(i)) for i in range(2)]
  edit = Document((Image(picture), Text("make it red"), words, drawn), id="edit")
  story = Document((Text("tell"), words, drawn, words, drawn), id="story")
  about = Document((Image(picture), Text("what is it"), words), id="about")
  assert sample_prompts([*planned, edit, story, about]) == {"image": [*planned, edit], "text": [about]}
  short = sample_prompts([*planned, edit, about], lambda prompt, respond: respond == "image" and not prompt.images)
  assert short == {"image": planned, "text": []}
  images.save_png(tmp_path / "a.png", picture)
  text, image = {"text": "a red box", "learn": True}, {"image": "a.png", "learn": True}
  lines = [[{"text": "draw", "learn": False}, text, image], [{"text": "tell", "learn": False}, text, image, text, image]]
  (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"segments": x}) + "\n" for x in lines))
  config = tiny.config(data__source="jsonl", data__path=str(tmp_path), data__kinds=())
  (tmp_path / "sweep").mkdir()
  assert pictures.asked(pictures.write_requests(tmp_path / "sweep", config, count=4)) == [("000", "draw")]


def test_a_dropped_prompt_takes_the_words_with_it():
  picture = tiny.TinySource()[0].images[0].pixels
  config = tiny.config()
  words, drawn = Text("a red box", True), Image(picture, True)
  caption = Document((Text("draw"), words, drawn))
  edit = Document((Image(picture), Text("make it red"), words, drawn))
  story = Document((Text("tell"), words, drawn, words, drawn))
  nothing = config.sampling.unconditional_prompt

  def laid(*segments):
    return layout(Document(segments), TK, patches=P).tokens_T.tolist()

  def shown(d):
    return [s.tokens_T.tolist() for s in variants(d, TK, config, dropped=True)]

  assert shown(caption) == [laid(*caption.segments), laid(Text(nothing), drawn)]
  assert shown(edit) == [laid(*edit.segments), laid(Text(nothing), drawn), laid(Image(picture), Text(nothing), drawn)]
  assert shown(story) == [laid(*story.segments)]

"""The server over HTTP: the official client works, errors are the API's own, and nobody keeps others from being served."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import httpx
import numpy as np
import PIL.Image
import pytest
import quick
import served
from served import KEY, LIMITS, wait_for
import tiny

from orthus_jax import cli, files
from orthus_jax.data.documents import document
from orthus_jax.inference.live import Engine
from orthus_jax.inference.responses import Drawn, Preview
from orthus_jax.inference.scheduler import Scheduler
from orthus_jax.serving import answers, chat, drawing, run, stream
from orthus_jax.serving.app import Server, Settings
from orthus_jax.serving.chat import Until
from orthus_jax.serving.pictures import to_base64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lively():
  return tiny.lively_model()


@pytest.fixture(scope="module")
def server(lively):
  with served.over_http(lively, max_body=1 << 20, body_seconds=1.0, seconds=120.0) as server:
    yield server


@pytest.fixture
def client(server):
  import openai

  return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def http(server):
  with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
    yield client


def picture():
  return tiny.TinySource()[0].images[0].pixels


def pixels(b64):
  return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(b64.partition(",")[2] or b64))))


def like(a, b):
  return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1


def asked(text="what is it?", shown=None, **more):
  content = [{"type": "text", "text": text}]
  if shown is not None:
    content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{to_base64(shown)}"}})
  return dict(model="tiny", messages=[{"role": "user", "content": content}], **more)


def test_the_official_client_chats(client, lively):
  assert [m.id for m in client.models.list().data] == ["tiny"] == [client.models.retrieve("tiny").id]
  ask = asked(shown=picture(), seed=3, max_tokens=12, extra_body={"respond": "text"})
  said = client.chat.completions.create(**ask)
  prompt = document(picture(), "what is it?")
  how = lively.config.sampling.__class__(**{**vars(lively.config.sampling), "max_new_tokens": 12})
  offline = lively.generate([prompt], respond="text", sampling=how, seeds=[3])[0]
  assert said.choices[0].message.content.strip() == " ".join(s.text for s in offline.response().texts).strip()
  assert 0 < said.usage.completion_tokens <= 12 and said.usage.prompt_tokens > 16
  assert said.choices[0].finish_reason in ("stop", "length")
  chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
  told = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
  assert told == said.choices[0].message.content and chunks[-1].usage.completion_tokens == said.usage.completion_tokens
  assert len(chunks) > 3  # as it comes


def test_pictures_of_a_conversation_come_as_parts_and_go_back(client, lively):
  first = client.chat.completions.create(**asked("draw a red box", seed=1, extra_body={"respond": "image", "guidance": 2.0}))
  message = first.choices[0].message
  drawn = pixels(message.images[0]["image_url"]["url"])
  how = lively.config.sampling.__class__(**{**vars(lively.config.sampling), "guidance": 2.0})
  offline = lively.generate([document("draw a red box")], respond="image", sampling=how, seeds=[1])[0]
  assert like(drawn, offline.images[-1].pixels)
  messages = [
      *asked("draw a red box")["messages"], message.model_dump(exclude_none=True), {"role": "user", "content": "what is it?"}
  ]  # fmt: skip
  second = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, extra_body={"respond": "text"})
  assert second.usage.prompt_tokens > first.usage.prompt_tokens + 16  # the picture is among it
  messages[1] = {"role": "assistant", "content": "", "images": message.images}  # as a stream tells it
  third = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, extra_body={"respond": "text"})
  assert third.usage.prompt_tokens == second.usage.prompt_tokens


def test_an_answers_parts_are_its_own_and_not_those_of_earlier_turns(client):
  messages = []
  for text in ("draw a red box", "now a blue one", "and another"):
    messages += asked(text)["messages"]
    message = client.chat.completions.create(
        model="tiny", messages=messages, extra_body={"respond": "image", "guidance": 1.0}
    ).choices[0].message  # fmt: skip
    assert message.parts == message.images and len(message.images) == 1
    messages.append(message.model_dump(exclude_none=True))


def test_without_a_seed_answers_differ_and_tell_it(client):
  first, second = (client.images.generate(model="tiny", prompt="draw a red box").data[0] for _ in range(2))
  assert first.seed != second.seed and not like(pixels(first.b64_json), pixels(second.b64_json))
  again = client.images.generate(model="tiny", prompt="draw a red box", extra_body={"seed": first.seed})
  assert again.data[0].b64_json == first.b64_json
  ask = asked("two", max_tokens=8, temperature=1.0, extra_body={"respond": "text"})
  both = client.chat.completions.create(**ask, n=2).choices
  assert both[1].message.seed == both[0].message.seed + 1
  chunks = list(client.chat.completions.create(**ask, seed=both[1].message.seed, stream=True))
  assert chunks[0].choices[0].delta.seed == both[1].message.seed
  assert "".join(c.choices[0].delta.content or "" for c in chunks) == both[1].message.content


def test_the_largest_seed_is_one(client):
  import openai

  ask = asked("two", max_tokens=1, seed=2**31 - 1, extra_body={"respond": "text"})
  assert client.chat.completions.create(**ask).choices[0].message.seed == 2**31 - 1
  with pytest.raises(openai.BadRequestError, match="must be from -2147483648 to 2147483646"):
    client.chat.completions.create(**ask, n=2)


@pytest.mark.parametrize(("partial", "taken"), [(1, [8]), (2, [6, 12]), (3, [4, 8, 12])])
def test_unfinished_pictures_are_spread_over_a_pictures_patches(lively, monkeypatch, partial, taken):
  async def events():
    for done in range(1, 16):
      if done % 2 == 0:
        yield Preview(0, 0, done, np.full((8, 8, 3), done, np.uint8))
    yield Drawn(0, 0, np.zeros((8, 8, 3), np.uint8))

  @contextlib.asynccontextmanager
  async def ask(engine, request, **how):
    yield answers.Answer(types.SimpleNamespace(prompt=1, made=1), events())

  async def shown():
    wanted = drawing.read({"prompt": "a", "stream": True, "partial_images": partial}, lively.config.sampling, resolution=8)
    told = [e async for e in drawing.stream(types.SimpleNamespace(model=lively), wanted, seconds=1.0)]
    return [int(pixels(e["b64_json"])[0, 0, 0]) for e in told[:-1]]

  monkeypatch.setattr(drawing, "ask", ask)
  assert asyncio.run(shown()) == taken


def test_several_choices_have_seeds_of_their_own_and_a_stop_ends_one(client):
  ask = asked("two", max_tokens=12, temperature=1.0, extra_body={"respond": "text"})
  both = client.chat.completions.create(**ask, seed=5, n=2).choices
  whole = client.chat.completions.create(**ask, seed=6).choices[0]
  alone = whole.message.content
  assert both[1].message.content == alone and both[0].message.content != alone and whole.finish_reason == "length"
  end = next(alone[-n:] for n in range(1, 20) if alone.index(alone[-n:]) == len(alone) - n)
  for cut in (alone[3:5], end):  # which comes with the last position
    stopped = client.chat.completions.create(**ask, seed=6, stop=[cut]).choices[0]
    assert stopped.message.content == alone[: alone.index(cut)] and stopped.finish_reason == "stop"


def test_pictures_are_drawn_and_edited(client):
  drawn = client.images.generate(model="tiny", prompt="draw a red box", n=2, response_format="b64_json", extra_body={"seed": 1})
  again = client.images.generate(model="tiny", prompt="draw a red box", extra_body={"seed": 2})
  first, second = (pixels(d.b64_json) for d in drawn.data)
  assert first.shape == (8, 8, 3) and not like(first, second) and like(second, pixels(again.data[0].b64_json))
  file = io.BytesIO(base64.b64decode(drawn.data[0].b64_json))
  edited = client.images.edit(model="tiny", image=("a.png", file), prompt="make it blue", extra_body={"seed": 1})
  assert pixels(edited.data[0].b64_json).shape == (8, 8, 3)
  planned = client.images.generate(model="tiny", prompt="draw a red box", extra_body={"plan": True, "max_new_tokens": 4})
  assert planned.data[0].revised_prompt and not drawn.data[0].revised_prompt
  events = list(client.images.generate(
      model="tiny", prompt="draw a red box", stream=True, partial_images=1, extra_body={"seed": 1}
  ))  # fmt: skip
  assert [e.type for e in events] == ["image_generation.partial_image", "image_generation.completed"]
  assert like(pixels(events[-1].b64_json), first)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("chat/completions", dict(messages=[]), 400, "messages must hold at least one message"),
        ("chat/completions", asked(shape=3), 400, "unknown field 'shape'"),
        ("chat/completions", asked(gidance=3), 400, "did you mean 'guidance'?"),
        ("chat/completions", asked(temperature="hot"), 400, "temperature='hot' isn't a number"),
        ("chat/completions", asked(guidance=-1.0), 400, "guidance"),
        ("chat/completions", asked(n=99), 400, "n=99 must be from 1 to 16"),
        ("chat/completions", asked(steps=77), 400, "solver and steps must be one of those"),
        ("chat/completions", asked(tools=[{"type": "function"}]), 400, "isn't served: leave it out"),
        ("chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]}]}, 400, "no address is fetched"),
        ("chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}, 400, "messages[0].content[0]"),
        ("chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}}]}]}, 400, "base64 is broken"),
        ("chat/completions", {"messages": [{"role": "user", "content": 99 * [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}, 400, "there are 99 pictures"),
        ("chat/completions", {"messages": [{"role": [], "content": "a"}]}, 400, "must be an object with a role"),
        ("chat/completions", asked(guidance_interval="0,1"), 400, "guidance_interval='0,1' must be a list"),
        ("chat/completions", asked(**{"a\ud800": 1}), 400, "unknown field 'a\\ud800'"),
        ("chat/completions", asked("a\ud800", stream=True), 400, "halves of surrogate pairs"),
        ("chat/completions", {"messages": [{"role": "assistant", "images": 3}]}, 400, "must be a list of parts"),
        ("chat/completions", {"messages": [{"role": "assistant", "parts": "ab"}]}, 400, "must be a list of parts"),
        ("images/generations", dict(prompt=" "), 400, "prompt must say what to draw"),
        ("images/generations", dict(prompt="a", size="1024x1024"), 400, "draws 8x8 alone"),
        ("images/generations", dict(prompt="a", response_format="url"), 400, "only b64_json is"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_told_in_the_apis_own_form(http, path, body, status, message):
  answer = http.post(f"/v1/{path}", content=json.dumps(body))
  error = answer.json()["error"]
  assert answer.status_code == status and message in error["message"] + str(error["param"]), error
  assert error["type"] == "invalid_request_error"


def test_a_fault_is_counted(server, monkeypatch):
  monkeypatch.setattr(drawing, "read", lambda *args, **how: 1 / 0)

  async def ask():
    transport = httpx.ASGITransport(app=server.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers={"Authorization": f"Bearer {KEY}"}) as to:
      answer = await to.post("/v1/images/generations", json={"prompt": "a"})
      return answer.status_code, answer.json()["error"]["message"], (await to.get("/metrics")).text

  status, message, metrics = asyncio.run(ask())
  assert status == 500 and "ZeroDivisionError" in message
  assert 'orthus_requests_total{path="/v1/images/generations",status="500"} 1.0' in metrics
  assert 'orthus_failures_total{reason="fault"} 1.0' in metrics


def test_pictures_are_made_small_at_once_and_no_more_than_have_room(http, lively):
  large = np.zeros((64, 96, 3), np.uint8)
  read = chat.read(asked("what is it?", shown=large), lively.config)
  assert read.requests[0].document.images[0].pixels.shape == (8, 8, 3)
  many = http.post("/v1/images/edits", data={"prompt": "a"}, files=[("image", (None, "x"))] * 60)
  assert many.status_code == 400 and "there are 60 pictures" in many.json()["error"]["message"]


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Sec-Fetch-Site": "same-origin", "Origin": "https://a.example"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
    ({"Origin": "http://localhost:8000"}, 200), ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Origin": "http://localhost:3000"}, 403), ({"Origin": "null"}, 403),
    ({"Host": "[::1]:8000"}, 200), ({"Host": "127.0.0.1"}, 200), ({"Host": "a.example:8000"}, 403),
    ({"Host": "localhost.a.example", "Origin": "http://localhost.a.example", "Sec-Fetch-Site": "same-origin"}, 403),
])  # fmt: skip
def test_other_pages_may_not_use_a_server_that_a_browser_reaches(server, headers, status):
  own = Server(server.engine)
  own.ready = own.here = True

  async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=own.app), base_url="http://localhost:8000") as to:
      asked = await to.post("/v1/chat/completions", content="{}", headers=headers)
      return (await to.get("/v1/models", headers=headers)).status_code, asked.status_code

  assert asyncio.run(ask()) == (status, 403 if status == 403 else 400)


def test_limits_of_a_request(http, server):
  assert http.post("/v1/chat/completions", content=b"{" * 10).json()["error"]["message"].startswith("the body isn't JSON")
  in_pieces = (b"x" * (1 << 16) for _ in range(32))  # whose size no header says
  assert http.post("/v1/chat/completions", content=in_pieces).status_code == 413
  host, port = server.url.removeprefix("http://").split(":")
  with socket.create_connection((host, int(port)), timeout=20) as declared:  # refused before any of it has come
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 2000000\r\n\r\n"
    declared.sendall(head.encode())
    assert b"413" in declared.recv(100)
  assert http.get("/v1/nothing").json()["error"]["message"].startswith("there is no /v1/nothing: POST /v1/chat")
  assert http.get("/v1/chat/completions").status_code == 405
  assert httpx.get(f"{server.url}/v1/models").status_code == 401
  assert httpx.post(f"{server.url}/v1/images/generations", json={}, headers={"Authorization": "Bearer no"}).status_code == 401
  assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
  bomb = io.BytesIO()
  PIL.Image.new("1", (8000, 8000)).save(bomb, "PNG")  # 64 million pixels in few bytes
  url = f"data:image/png;base64,{base64.b64encode(bomb.getvalue()).decode()}"
  body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
  assert "make it smaller" in http.post("/v1/chat/completions", json=body).json()["error"]["message"]


def test_half_a_request_is_not_waited_for_and_idle_connections_keep_nobody_out(http, server):
  host, port = server.url.removeprefix("http://").split(":")
  assert files.allow_many_open() > 2100  # both ends of each are this process's
  idle = [socket.create_connection((host, int(port))) for _ in range(1000)]
  half = socket.create_connection((host, int(port)))
  half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\n{")
  assert http.post("/v1/images/generations", json={"prompt": "red"}).status_code == 200
  half.settimeout(20)
  assert b"408" in half.recv(100)
  for connection in (*idle, half):
    connection.close()


@pytest.fixture
def held(monkeypatch):
  yield from served.held(monkeypatch)


def test_a_closed_connection_gives_all_up_and_a_full_queue_says_when_to_come_again(http, server, held):
  before = server.engine._number
  body = asked("two", stream=True, max_tokens=200, respond="text", n=3)
  with http.stream("POST", "/v1/chat/completions", json=body) as answer:
    lines = answer.iter_lines()  # which closes the connection once it is nobody's
    next(lines)
    wait_for(lambda: server.engine._number == before + 3 and server.engine._running)
    full = http.post("/v1/chat/completions", json=asked("two", max_tokens=50, n=8))
    assert full.status_code == 429 and int(full.headers["Retry-After"]) > 0
    full = http.post("/v1/chat/completions", json=asked("two", max_tokens=50, n=8, stream=True))
    assert full.status_code == 429 and int(full.headers["Retry-After"]) > 0  # though some were taken
  wait_for(lambda: set(range(before, before + 3)) <= server.engine._given_up)
  held.set()
  wait_for(lambda: server.engine.load.rows == server.engine.load.waiting == 0)


def test_pictures_of_one_stream_are_drawn_at_once_and_told_in_order(http, server, held):
  before = server.engine._number
  body = {"prompt": "draw a red box", "n": 3, "stream": True, "partial_images": 1, "seed": 5}
  with ThreadPoolExecutor(1) as pool:
    answer = pool.submit(http.post, "/v1/images/generations", json=body)
    wait_for(lambda: server.engine._number == before + 3)
    held.set()
    told = [json.loads(line[6:]) for line in answer.result().text.splitlines() if line.startswith("data: {")]
  assert [e["seed"] for e in told if e["type"].endswith("completed")] == [5, 6, 7]
  assert [e["seed"] for e in told] == sorted(e["seed"] for e in told) and len(told) == 6


def test_a_stream_says_that_it_lives_while_nothing_comes(client, http, server, held, monkeypatch):
  monkeypatch.setattr(stream, "_QUIET", 0.05)
  with http.stream("POST", "/v1/images/generations", json={"prompt": "draw a red box", "stream": True}) as answer:
    lines = answer.iter_lines()  # which have begun before there is anything to tell
    assert [next(lines) for _ in range(4)] == [": still at it", ""] * 2
    wait_for(lambda: server.engine._running)
  with ThreadPoolExecutor(1) as pool:  # the official client reads over it
    events = client.images.generate(prompt="draw a red box", stream=True)
    told = pool.submit(list, events)
    held.set()
    assert [e.type for e in told.result()] == ["image_generation.completed"]
  wait_for(lambda: server.engine.load.rows == server.engine.load.waiting == 0)


def test_a_chats_first_piece_is_one_of_its_answer(http, held):
  def seen():
    name = 'orthus_first_piece_seconds_count{path="/v1/chat/completions"}'
    return next((float(line.split()[1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name)), 0.0)

  before = seen()
  with http.stream("POST", "/v1/chat/completions", json=asked("two", stream=True, max_tokens=9, respond="text")) as answer:
    lines = answer.iter_lines()
    assert '"role": "assistant"' in next(lines)
    assert seen() == before
    held.set()
    list(lines)
  assert seen() == before + 1


def test_who_goes_while_the_engine_is_asked_gives_it_up(lively):
  may, given_up = threading.Event(), threading.Event()

  def submit(request, **how):
    may.wait(60)
    return types.SimpleNamespace(cancel=given_up.set)

  async def go():
    async def ask():
      async with answers.ask(types.SimpleNamespace(submit=submit, failed=""), None, seconds=1.0):
        pass

    task = asyncio.create_task(ask())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task
    may.set()
    await asyncio.to_thread(given_up.wait, 10)

  asyncio.run(go())
  assert given_up.is_set()


def test_an_answer_that_a_call_holds_up_takes_too_long(http, server, held, monkeypatch):
  monkeypatch.setattr(answers, "_BEHIND", 0.0)
  monkeypatch.setattr(server, "settings", dataclasses.replace(server.settings, seconds=0.5))
  answer = http.post("/v1/images/generations", json={"prompt": "draw a red box"})
  assert (answer.status_code, answer.json()["error"]["message"]) == (504, "it took too long")


def test_a_server_ends_though_a_call_hangs(lively, monkeypatch, caplog):
  engine = types.SimpleNamespace(model=lively, failed="no room", start=lambda: None, close=lambda **_: False)
  left = []
  monkeypatch.setattr(run.os, "_exit", left.append)
  with caplog.at_level("INFO", "orthus_jax.serve"):
    run.serve(Server(engine), run.listen("127.0.0.1", 0), compile=None, grace=1.0)
  assert left == [1] and "stopped, though a call hangs" in caplog.text


def test_a_server_whose_engine_failed_is_not_healthy_and_ends_with_1(lively):
  engine = types.SimpleNamespace(model=lively, failed="", close=lambda **_: True)
  engine.start = lambda: setattr(engine, "failed", "no room")
  server = Server(engine)

  async def ask(method, path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=server.app), base_url="http://localhost") as to:
      return await to.request(method, path)

  assert run.serve(server, run.listen("127.0.0.1", 0), compile=None, grace=1.0) == 1
  server.ready = True
  health = asyncio.run(ask("GET", "/health"))
  assert (health.status_code, health.json()) == (503, {"status": "failed"})
  server.ready = False
  refused = asyncio.run(ask("POST", "/v1/images/generations"))
  assert (refused.status_code, refused.json()["error"]["message"]) == (503, "no room") and "Retry-After" in refused.headers
  assert server.metrics.registry.get_sample_value("orthus_failures_total", {"reason": "not ready"}) == 1


def test_a_process_gets_as_many_connections_as_the_system_gives():
  program = (
      "import resource; from orthus_jax import files; n = resource.RLIMIT_NOFILE; hard = resource.getrlimit(n)[1]\n"
      "resource.setrlimit(n, (64, hard)); assert files.allow_many_open() == resource.getrlimit(n)[0] == min(hard, 1 << 16)"
  )
  subprocess.run([sys.executable, "-c", program], check=True)


def test_first_words_come_within_two_engine_calls_of_joining(http, server, monkeypatch):
  step, may = Scheduler.step, threading.Semaphore(0)
  monkeypatch.setattr(Scheduler, "step", lambda *args, **how: may.acquire(timeout=60) and step(*args, **how))

  def first_words(answer):
    for line in answer.iter_lines():
      if line.startswith("data: {") and (said := json.loads(line[6:])["choices"][0]["delta"].get("content")):
        return said

  try:
    drawing = dict(json=asked("draw a red box", stream=True, respond="image"), timeout=30)
    talking = dict(json=asked("two", seed=3, stream=True, max_tokens=40, respond="text"), timeout=30)
    with http.stream("POST", "/v1/chat/completions", **drawing):
      may.release()
      wait_for(lambda: server.engine.load.rows == 1)
      number = server.engine._number
      with http.stream("POST", "/v1/chat/completions", **talking) as answer:
        wait_for(lambda: server.engine._number == number + 1)
        may.release(3)  # the call that is under way, and two
        assert first_words(answer)
  finally:
    may.release(1000)


def test_who_goes_before_the_first_picture_gives_it_up(http, server, held):
  with pytest.raises(httpx.ReadTimeout):
    http.post("/v1/images/generations", json={"prompt": "a box", "stream": True}, timeout=0.5)
  wait_for(lambda: server.engine._given_up)  # though nothing has come of it yet


def test_metrics_count_what_was_asked(http):
  text = http.get("/metrics").text
  assert 'orthus_requests_total{path="/v1/images/generations",status="200"}' in text
  for name in ("orthus_queue 0.0", "orthus_rows 0.0", "orthus_pictures_total", "orthus_request_seconds_bucket"):
    assert name in text, text
  assert 'orthus_failures_total{reason="bad request"}' in text


def test_what_may_begin_a_stop_is_held_back():
  until = Until(["END", "."])
  assert [until.add(t) for t in ("a E", "Nb", " EN", "Dc", "more")] == ["a ", "ENb", " ", "", ""] and until.met
  until = Until(["END"])
  assert until.add("x EN") == "x " and until.add("", last=True) == "EN"


def test_texts_that_follow_each_other_stay_apart(lively):
  messages = [
      {"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
      {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
  ]  # fmt: skip
  (request,) = chat.read({"messages": messages}, lively.config).requests
  assert [(s.text, s.learn) for s in request.document.segments] == [("be brief\na\nb", False), ("c", True), ("d", False)]


@pytest.mark.parametrize("field", [{"output_format": "jpeg"}, {"background": "transparent"}])
def test_pictures_of_another_kind_are_refused(http, field):
  answer = http.post("/v1/images/generations", json={"prompt": "red", **field})
  assert answer.status_code == 400 and "isn't served: leave it out" in answer.json()["error"]["message"]


def test_an_answer_that_takes_too_long_is_ended(lively):
  engine = Engine(lively, LIMITS)
  engine.start()
  server = Server(engine, Settings(seconds=0.001))
  server.ready = True

  async def ask():
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
      answer = await client.post("/v1/chat/completions", json=asked("two", max_tokens=200, respond="text"))
      return answer.status_code, json.loads(answer.text), answer.headers.get("x-should-retry")

  status, body, again = asyncio.run(ask())
  assert status == 504 and body["error"]["message"] == "it took too long" and again == "false"
  engine.close()


@pytest.mark.parametrize("arguments, message", [
    (["--host=0.0.0.0"], "lets others in: set ORTHUS_API_KEY (or --api-key), or say --open"),
    (["--port=1"], "can't be listened at"),
    (["--rows=0"], "--rows"),
])  # fmt: skip
def test_a_server_that_cannot_start_says_so_in_a_line(arguments, message, capsys, monkeypatch):
  monkeypatch.delenv("ORTHUS_API_KEY", raising=False)
  monkeypatch.setattr(socket.socket, "bind", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
  assert cli.main(["serve", "run", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_signal_lets_what_runs_finish_and_the_command_ends_with_0(orthus, tmp_path):
  environment = os.environ | quick.environment() | {"ORTHUS_API_KEY": KEY}
  options = ["--port=0", "--no-compile", "--rows=2", "--positions=4"]
  command = [sys.executable, "-m", "orthus_jax.cli", "serve", str(orthus), *options]
  with (tmp_path / "log").open("w") as log:
    process = subprocess.Popen(command, env=environment, stderr=log)
  try:
    url = _line(tmp_path / "log", process, r"serving orthus at (http://\S+)/v1")
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
      body = asked("two", stream=True, max_tokens=40, respond="text")
      with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert process.wait(60) == 0
  finally:
    process.kill()
  assert KEY not in (tmp_path / "log").read_text()


def _line(path, process, pattern):
  by = time.monotonic() + 120
  while not (found := re.search(pattern, path.read_text())):
    assert process.poll() is None and time.monotonic() < by, path.read_text()
    time.sleep(0.1)
  return found[1]

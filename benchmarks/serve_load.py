"""Random load on the server: what comes, goes away early, is wrong or far too large; nothing may leak, and none may be lost.

    python benchmarks/serve_load.py RUN [--seconds=3600] [--clients=12] [--seed=0]

Each client asks for something at random (chats of all kinds, whole or as streams, several choices, pictures, edits), gives some
up at a random moment, sends nonsense and pictures far too large, and pauses. Prints the server's memory by the minute. Exits
with 1 if a request had no answer or a wrong status, if a row, guide or place in the queue is still in use at the end, if the
server doesn't end with status 0, or if its memory in the last minutes is over 5% above that after the first ten (a sixth of
the time, where that is less).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import io
import json
from pathlib import Path
import random
import re
import tempfile
import time
from typing import Any

import httpx
import mixed
import PIL.Image
from serve import Served, body

_ROWS = ("--rows=8", "--queue=16", "--positions=4", "--seconds=60", "--max-body=1")


class Load:
  """Clients at work, and what came of what they asked.

  Attributes:
    outcomes: counts by (what was asked, status); "gone" where the client left early.
    wrong: answers that weren't as they should be.
  """

  def __init__(self, url: str, bodies: list[dict[str, Any]], seed: int):
    self._url, self._bodies, self._random = url, bodies, random.Random(seed)
    self.outcomes: collections.Counter[tuple[str, Any]] = collections.Counter()
    self.wrong: list[str] = []
    large = io.BytesIO()
    PIL.Image.new("1", (8000, 8000)).save(large, "PNG")
    self._picture = large.getvalue()

  async def run(self, clients: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients * 2)
    async with httpx.AsyncClient(base_url=self._url, timeout=120, limits=limits) as http:

      async def client() -> None:
        while time.monotonic() < end:
          await self._one(http)
          await asyncio.sleep(self._random.expovariate(4.0))

      await asyncio.gather(*(client() for _ in range(clients)))

  async def _one(self, http: httpx.AsyncClient) -> None:
    kinds = {"chat": 8, "stream": 6, "several": 2, "draw": 2, "edit": 1, "gone": 6, "wrong": 3, "large": 1, "many": 1}
    kind = self._random.choices(list(kinds), list(kinds.values()))[0]
    try:
      status, right = await getattr(self, f"_{kind}")(http)
    except httpx.HTTPError as e:
      status, right = type(e).__name__, False
    self.outcomes[kind, status] += 1
    if not right and status not in (429, 504):
      self.wrong.append(f"{kind}: {status}")

  def _body(self, **more: Any) -> dict[str, Any]:
    return {**self._random.choice(self._bodies), "seed": self._random.randrange(1000), **more}

  async def _chat(self, http):
    answer = await http.post("/v1/chat/completions", json=self._body())
    return answer.status_code, answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"]

  async def _several(self, http):
    answer = await http.post("/v1/chat/completions", json=self._body(n=self._random.randint(2, 4), temperature=1.0))
    return answer.status_code, answer.status_code == 200 and answer.json()["choices"][-1]["finish_reason"]

  async def _stream(self, http):
    async with http.stream("POST", "/v1/chat/completions", json=self._body(stream=True, previews=True)) as answer:
      lines = [line async for line in answer.aiter_lines() if line]
    return answer.status_code, lines[-1:] == ["data: [DONE]"]

  async def _draw(self, http):
    answer = await http.post("/v1/images/generations", json={"prompt": "a red circle", "seed": self._random.randrange(99)})
    return answer.status_code, answer.status_code == 200 and answer.json()["data"][0]["b64_json"]

  async def _edit(self, http):
    picture = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (200, 40, 40)).save(picture, "PNG")
    answer = await http.post("/v1/images/edits", data={"prompt": "make it blue"}, files={"image": picture.getvalue()})
    return answer.status_code, answer.status_code == 200

  async def _gone(self, http):
    """Leaves after a random time, or with the first piece of a stream."""
    wait, stream = self._random.expovariate(3.0), self._random.random() < 0.5
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(wait):
        if not stream:
          await http.post("/v1/chat/completions", json=self._body(n=self._random.randint(1, 3)))
        else:
          async with http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as answer:
            async for _ in answer.aiter_lines():
              break
    return "gone", True

  async def _wrong(self, http):
    nonsense = self._random.choice([
        b"{", b"[]", json.dumps({"messages": []}).encode(), json.dumps(self._body(guidance=-3)).encode(),
        json.dumps(self._body(steps=77)).encode(), json.dumps(self._body(nothing=1)).encode(),
        json.dumps({"messages": [{"role": "user", "content": "word " * 5000}]}).encode(),
    ])  # fmt: skip
    answer = await http.post("/v1/chat/completions", content=nonsense)
    return answer.status_code, answer.status_code == 400 and answer.json()["error"]["message"]

  async def _large(self, http):
    answer = await http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": self._picture})
    return answer.status_code, answer.status_code == 400

  async def _many(self, http):
    answer = await http.post("/v1/chat/completions", content=b"x" * (3 << 20))
    return answer.status_code, answer.status_code == 413


def memory(process: int) -> float:
  """MiB that it holds."""
  return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


async def watched(load: Load, served: Served, clients: int, seconds: float) -> list[tuple[float, float]]:
  """Runs the load; (minutes, MiB) by the way."""
  begin, seen = time.monotonic(), []

  async def watch() -> None:
    while True:
      seen.append(((time.monotonic() - begin) / 60, memory(served.process.pid)))
      if len(seen) % 30 == 1:
        print(f"{seen[-1][0]:5.1f} min  {seen[-1][1]:7.1f} MiB  {sum(load.outcomes.values()):6} requests", flush=True)
      await asyncio.sleep(2)

  watcher = asyncio.create_task(watch())
  await load.run(clients, seconds)
  watcher.cancel()
  return seen


def main() -> None:
  """Runs the load and judges it."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run")
  parser.add_argument("--seconds", type=float, default=3600)
  parser.add_argument("--clients", type=int, default=12)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  from orthus_jax.inference.model import load as load_model

  faults = []
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    file = mixed.write(load_model(options.run).config, folder / "requests", 100)
    bodies = [body(json.loads(line), file.parent) for line in file.read_text().splitlines()]
    served = Served(options.run, folder, *_ROWS)
    print(f"ready after {served.started:.0f} s", flush=True)
    load = Load(served.url, bodies, options.seed)
    seen = asyncio.run(watched(load, served, options.clients, options.seconds))
    by = time.monotonic() + 60
    while time.monotonic() < by and any(served.metrics()[f"orthus_{n}"] for n in ("rows", "guides", "queue")):
      time.sleep(0.5)
    left = {n: served.metrics()[f"orthus_{n}"] for n in ("rows", "guides", "queue")}
    if any(left.values()):
      faults.append(f"still in use: {left}")
    if (status := served.close()) != 0:
      faults.append(f"the server ended with status {status}")
    if "Traceback" in (log := served.log.read_text()):
      faults.append(f"the server's log has a traceback: {log[log.index('Traceback'):][:2000]}")
  whole = seen[-1][0]
  early = max(m for t, m in seen if t <= min(10, whole / 6))
  late = max(m for t, m in seen if t >= whole * 0.9)
  if late > 1.05 * early:
    faults.append(f"memory grew: {early:.0f} MiB, then {late:.0f}")
  faults += load.wrong[:10]
  for (kind, status), n in sorted(load.outcomes.items(), key=str):
    print(f"  {kind:<8} {status!s:<16} {n}")
  print(f"{sum(load.outcomes.values())} requests in {whole:.0f} min, {len(load.wrong)} wrong; memory {early:.0f} MiB after the"
        f" beginning, {late:.0f} MiB at the end ({late / early - 1:+.1%})")  # fmt: skip
  if faults:
    raise SystemExit("\n".join(faults))


if __name__ == "__main__":
  main()

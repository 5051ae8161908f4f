"""How fast the server answers a file of mixed requests from many clients, beside `orthus generate --requests` on the same file.

    python benchmarks/serve.py RUN [--clients=32] [--rows=32] [--rounds=3] [--requests=200] [--markdown]

RUN is the directory of a run on the built-in world (the quickstart's, say). Offline there are 32 rows. Both are warm: each has
answered the file once, in a process of its own, and they are timed in turns. Every answer that came over HTTP must be the
offline one: the same texts, pictures within one of 255 levels. First pieces are timed in a round of their own, with streams.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx
import mixed
import numpy as np
import PIL.Image


class Served:
  """`orthus serve` in a process of its own, ready."""

  def __init__(self, run: str, folder: Path, *options: str):
    self.log = folder / "serve.log"
    environment = {k: v for k, v in os.environ.items() if k != "ORTHUS_API_KEY"}
    command = [sys.executable, "-m", "orthus_jax.cli", "serve", run, "--port=0", "--name=served", *options]
    with self.log.open("w") as log:
      self.process = subprocess.Popen(command, env=environment, stderr=log)
    begin = time.monotonic()
    while not (found := re.search(r"serving served at (http://\S+)/v1", self.log.read_text())):
      if self.process.poll() is not None or time.monotonic() > begin + 1200:
        raise SystemExit(f"the server didn't start:\n{self.log.read_text()}")
      time.sleep(0.2)
    self.url, self.started = found[1], time.monotonic() - begin

  def metrics(self) -> dict[str, float]:
    """By name and labels, as Prometheus' text has them."""
    lines = httpx.get(f"{self.url}/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}

  def close(self) -> int:
    self.process.terminate()
    return self.process.wait(60)


def body(record: dict[str, Any], folder: Path) -> dict[str, Any]:
  """A line of the file as a chat."""
  files, content = iter(record["images"]), []
  for piece in re.split("(<image>)", record["prompt"]):
    if piece == "<image>":
      data = base64.b64encode((folder / next(files)).read_bytes()).decode()
      content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    elif piece:
      content.append({"type": "text", "text": piece})
  return {"messages": [{"role": "user", "content": content}], "respond": record["respond"], "seed": record["seed"]}


async def ask_all(url: str, bodies: list[dict[str, Any]], clients: int) -> tuple[float, list[Any]]:
  """Seconds, and each answer."""
  waiting, answers = list(enumerate(bodies))[::-1], [None] * len(bodies)
  async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as http:

    async def one() -> None:
      while waiting:
        n, asked = waiting.pop()
        answers[n] = (await http.post("/v1/chat/completions", json=asked)).raise_for_status().json()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return time.perf_counter() - begin, answers


async def first_pieces(url: str, bodies: list[dict[str, Any]], clients: int) -> list[float]:
  """Seconds until each answer's first piece."""
  waiting, seconds = list(bodies)[::-1], []
  async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as http:

    async def one() -> None:
      while waiting:
        asked, begin, first = waiting.pop(), time.perf_counter(), None
        async with http.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
          async for line in answer.aiter_lines():
            if first is None and ('"content": "' in line or '"images"' in line) and '"content": ""' not in line:
              first = time.perf_counter() - begin
        seconds.append(first if first is not None else time.perf_counter() - begin)

    await asyncio.gather(*(one() for _ in range(clients)))
  return seconds


def differences(answers: list[Any], records: list[dict[str, Any]], offline: Path) -> list[str]:
  """Ids of answers that aren't the offline ones."""
  wanted = {r["id"]: r["response"] for r in map(json.loads, (offline / "results.jsonl").read_text().splitlines())}
  different = []
  for record, answer in zip(records, answers):
    message = answer["choices"][0]["message"]
    said = message["content"].strip()
    parts = message.get("parts") or ([{"type": "text", "text": said}] if said else [])
    theirs = wanted[record["id"]]
    same = len(parts) == len(theirs)
    for part, other in zip(parts, theirs) if same else ():
      if part["type"] == "text":
        same &= other.get("text") == part["text"]
      else:
        ours = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))), int)
        same &= "image" in other and np.abs(ours - np.asarray(PIL.Image.open(offline / other["image"]), int)).max() <= 1
    if not same:
      different.append(record["id"])
  return different


def main() -> None:
  """Runs the benchmark and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run")
  parser.add_argument("--clients", type=int, default=32)
  parser.add_argument("--requests", type=int, default=200)
  parser.add_argument("--rows", type=int, default=mixed.ROWS, help="of the server")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--markdown", action="store_true")
  options = parser.parse_args()
  from orthus_jax.inference.model import load

  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    file = mixed.write(load(options.run).config, folder / "requests", options.requests)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    bodies = [body(r, file.parent) for r in records]
    offline = mixed.Offline(options.run, file, folder / "answers")
    print(f"offline, first time: {offline.seconds():.1f} s", flush=True)
    served = Served(options.run, folder, f"--rows={options.rows}", f"--queue={options.requests}")
    print(f"the server was ready after {served.started:.1f} s", flush=True)
    asyncio.run(ask_all(served.url, bodies, options.clients))
    times: dict[str, list[float]] = {"offline": [], "HTTP": []}
    for _ in range(options.rounds):
      times["offline"].append(offline.seconds())
      seconds, answers = asyncio.run(ask_all(served.url, bodies, options.clients))
      times["HTTP"].append(seconds)
    different = differences(answers, records, folder / "answers")
    before = served.metrics()["orthus_engine_calls_total"]
    begin = time.perf_counter()
    pieces = sorted(asyncio.run(first_pieces(served.url, bodies, options.clients)))
    call = (time.perf_counter() - begin) / max(served.metrics()["orthus_engine_calls_total"] - before, 1)
    offline.process.stdin.close()
    status = served.close()
  n = len(records)
  ratio = sorted(a / b for a, b in zip(times["offline"], times["HTTP"]))[options.rounds // 2]
  rows = [["", "seconds", "requests/s"]]
  rows += [[name, " ".join(f"{s:.2f}" for s in t), f"{n / min(t):.1f}"] for name, t in times.items()]
  for i, row in enumerate(rows):
    print(f"| {' | '.join(row)} |" if options.markdown else "  ".join(f"{v:<22}" for v in row))
    if options.markdown and not i:
      print("|---|---|---|")
  print(f"{n} requests, {options.clients} clients: {ratio:.2f} of the offline throughput (median round; aim: 0.9)")
  print(f"{n - len(different)} of {n} answers are the offline ones{': not ' + ', '.join(different[:5]) if different else ''}")
  print(f"first piece: median {pieces[n // 2]:.2f} s, 95% within {pieces[int(n * 0.95)]:.2f} s; a call takes {call:.3f} s")
  print(f"the server ended with status {status}")


if __name__ == "__main__":
  main()

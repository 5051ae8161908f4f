"""`orthus generate`: one prompt in, pictures and text out."""

from __future__ import annotations

from collections.abc import Sequence
import base64
import dataclasses
import html
import json
from pathlib import Path
import sys
import time

from orthus_jax.commands import common
from orthus_jax.config import BadRequest
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image, Text, interleaved

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1.05rem/1.6 Georgia, serif; color-scheme: light dark }}
.prompt {{ color: gray; font-style: italic }}
img {{ display: block; width: 16rem; max-width: 100%; margin: 1rem 0; border-radius: 6px; image-rendering: pixelated }}
</style></head><body>
{body}
</body></html>
"""


def _parser() -> common.Parser:
  parser = common.Parser(
      prog="orthus generate",
      description="Draws, answers, edits or tells a story. Pictures of the prompt come before its text, or where it says"
      " <image>.",
  )
  add = parser.add_argument
  add("model", help="a run's directory, one of its checkpoints, or a Hugging Face directory")
  add("--prompt", default="", help="the text: a caption, a question, an instruction, the opening of a story")
  add("--image", action="append", default=[], metavar="FILE", help="a picture that the prompt is about; repeatable")
  add("--respond", choices=("auto", "image", "text"), default="auto",
      help="draw one picture, answer in text alone, or let the model decide (default)")
  add("--out", default="", metavar="PATH",
      help="FILE.png for one picture, FILE.md or FILE.html for text with pictures, else a directory of pictures")
  add("--count", type=int, default=1, help="how many responses, each with a seed of its own")
  add("--seed", type=int, default=0)
  add("--steps", type=int, help="solver steps per patch")
  add("--guidance", type=float, help="how closely a picture follows the text; 1 turns guidance off")
  add("--image-guidance", type=float, help="in editing: how closely the result keeps to the picture")
  add("--temperature", type=float, help="of text; 0 is greedy")
  add("--top-k", type=int)
  add("--top-p", type=float)
  add("--max-new-tokens", type=int, help="longest response, counting each patch as one")
  add("--json", action="store_true", help="print what was made as JSON")
  return parser


def main(argv: Sequence[str]) -> int:
  """Generates responses to one prompt."""
  args = _parser().parse_args(argv)
  begin = time.monotonic()
  if not args.prompt.strip() and not args.image:
    raise BadRequest("nothing to go by: give --prompt, --image or both")
  if args.count < 1:
    raise BadRequest(f"--count={args.count} must be at least 1")
  out = Path(args.out) if args.out else None
  if out and out.suffix == ".png" and args.count > 1:
    raise BadRequest("--out names one picture, but --count asks for several: give a directory")
  pictures, text = [images_lib.load_image(file) for file in args.image], args.prompt.strip()
  segments = interleaved(text if "<image>" in text else "<image>" * len(pictures) + text, pictures).segments

  common.start()
  from orthus_jax.inference import model as model_lib

  model = model_lib.load(args.model)
  given = {
      "steps": args.steps, "guidance": args.guidance, "image_guidance": args.image_guidance,
      "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "max_new_tokens": args.max_new_tokens,
  }  # fmt: skip
  sampling = dataclasses.replace(model.config.sampling, **{k: v for k, v in given.items() if v is not None})
  seeds = range(args.seed, args.seed + args.count)
  results = model.generate([Document(tuple(segments))] * args.count, respond=args.respond, sampling=sampling, seeds=seeds)
  responses = [r.segments[len(segments):] for r in results]

  files = _write(out, segments, responses)
  if args.json:
    json.dump({"responses": [_as_json(r, f) for r, f in zip(responses, files)], "seconds": time.monotonic() - begin},
              sys.stdout, indent=2)  # fmt: skip
    print()
    return 0
  for response, paths in zip(responses, files):
    paths = iter(paths)
    for s in response:
      print(s.text if isinstance(s, Text) else f"[{next(paths, 'picture')}]")
  if out is not None and out.suffix in (".md", ".html"):
    print(f"written: {out}")
  if not any(responses):
    print("(the model ended without a word)", file=sys.stderr)
  return 0


def _write(out: Path | None, prompt: Sequence, responses: Sequence[Sequence]) -> list[list[str]]:
  """Writes pictures and pages; returns each response's picture files."""
  page = out is not None and out.suffix in (".md", ".html")
  if out is not None and out.suffix and not page and out.suffix != ".png":
    raise BadRequest(f"--out={out}: its ending must be .png, .md or .html, or it must be a directory")
  stem = out.stem if page else "picture"
  folder = out.parent if page else (out or Path("generated"))
  files: list[list[str]] = []
  n = 0
  for response in responses:
    files.append([])
    for s in response:
      if isinstance(s, Image):
        single = out is not None and out.suffix == ".png"
        path = out.with_stem(f"{out.stem}-{n}") if single and n else out if single else folder / f"{stem}-{n:03d}.png"
        if not (page and out.suffix == ".html"):  # an HTML page carries its pictures
          images_lib.save_png(path, s.pixels)
          files[-1].append(str(path))
        n += 1
  if page:
    out.parent.mkdir(parents=True, exist_ok=True)
    text = _markdown(prompt, responses, files) if out.suffix == ".md" else _html(prompt, responses)
    out.write_text(text, encoding="utf-8")
  return files


def _markdown(prompt: Sequence, responses: Sequence[Sequence], files: list[list[str]]) -> str:
  blocks = [f"*{s.text}*" for s in prompt if isinstance(s, Text)]
  for response, paths in zip(responses, files):
    names = (Path(p).name for p in paths)
    blocks += [s.text if isinstance(s, Text) else f"![]({next(names)})" for s in response]
  return "\n\n".join(blocks) + "\n"


def _html(prompt: Sequence, responses: Sequence[Sequence]) -> str:
  def block(s, given: bool) -> str:
    if isinstance(s, Text):
      return f'<p{" class=prompt" if given else ""}>{html.escape(s.text)}</p>'
    data = base64.b64encode(images_lib.png_bytes(s.pixels)).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'

  body = [block(s, True) for s in prompt] + [block(s, False) for response in responses for s in response]
  title = next((html.escape(s.text) for s in prompt if isinstance(s, Text)), "orthus")
  return _PAGE.format(title=title, body="\n".join(body))


def _as_json(response: Sequence, files: list[str]) -> list[dict[str, str]]:
  names = iter(files)
  return [{"text": s.text} if isinstance(s, Text) else {"image": next(names, "")} for s in response]

"""Benchmarks' prompts in training texts."""


class Prompts:
  def find(self, text: str) -> tuple[str, ...]:
    return ()

  def digest(self) -> str:
    return ""

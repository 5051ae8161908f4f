"""Tar files of every layout, made by hypothesis: each member is in a document, or counted and named; bytes are tarfile's."""

import io
import os
from pathlib import PurePosixPath
import re
import tarfile

from hypothesis import HealthCheck, given, settings, strategies as st
import PIL.Image
from sources import tar_source
from test_tar import sparse

from orthus_jax.data.sources import layout as layout_module, tar_members
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.remarks import Remarks, printable
from orthus_jax.errors import BadRequest

EXAMPLES = int(os.environ.get("ORTHUS_EXAMPLES", "100"))
REPORT = BadRecords.report
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
run_many = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

NAMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "", "./", "d/", "d.1/", "__MACOSX/", "/", "../", "d//"]),
        st.sampled_from(["a", "a", "b", "22", "22.1", "22.01", "a.b.c", "caf\u00e9", "caf\udce9", "._a", ".h", "n" * 120, "a\n",
                         ""]),
        st.sampled_from([".png", ".png", ".txt", ".txt", ".json", ".caption", ".PNG", ".jfif", ".cls", "", ".", ".seg.png",
                         "..txt", ".input.png", ".output.png", ".edit.txt", ".input.txt"]),
    ),
)  # fmt: skip
TYPES = st.sampled_from([
    *[tarfile.REGTYPE] * 12, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.FIFOTYPE, tarfile.BLKTYPE, b"Z",
])  # fmt: skip
SPARSE = ["gnu", "0.0", "0.1", "1.0"]
HOW = ["good"] * 8 + ["empty", "garbage"] + SPARSE
MEMBERS = st.lists(st.tuples(NAMES, TYPES, st.sampled_from(HOW)), max_size=8)
# Whole samples, so that not all is odd; their parts may stand apart.
PARTS = [("png", "txt"), ("png", "txt"), ("input.png", "output.png", "txt"), ("edit.txt", "input.png", "output.png")]
SAMPLES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "22.1", "d/22.2", "x.y.z"]), st.sampled_from(PARTS)), max_size=3
).map(lambda found: [(f"{n}.{e}", tarfile.REGTYPE, "good") for n, parts in found for e in parts])
LAYOUT = st.lists(
    st.tuples(
        st.builds(lambda a, b, c, apart: (a + b + c)[::2] + (a + b + c)[1::2] if apart else a + b + c,
                  SAMPLES, MEMBERS, SAMPLES, st.booleans()),
        st.sampled_from(FORMATS), st.sampled_from([10240, 1024, 512, 0]),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


class Everything(Remarks):
  """Remarks that keep each name."""

  def __init__(self):
    super().__init__()
    self.names: list[str] = []

  def add(self, kind, name):
    super().add(kind, name)
    self.names.append(name)


def body(name: str, how: str, number: int) -> bytes:
  if how == "empty":
    return b""
  if how == "garbage":
    return b"\xff\xfe" * 300
  if name.lower().endswith((".png", ".jfif")):
    buffer = io.BytesIO()
    PIL.Image.new("L", (1, 1), number).save(buffer, "PNG")
    return buffer.getvalue()
  return b'{"caption": "%d"}' % number if name.endswith(".json") else b"%d" % number


def build(layout) -> tuple[bytes, list[tuple[str, bytes, int]]]:
  """A tar file, and (name, bytes, end) of its regular members as tarfile reads them."""
  file, expected, number = b"", [], 0
  for members, form, zeros in layout:
    buffer = io.BytesIO()
    t = tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape")
    for name, kind, how in members:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, "a.png"
      data = body(name, how, number) if info.isreg() and not name.endswith("/") else b""  # that is a folder to tarfile
      if how in SPARSE and info.isreg() and name.endswith(".png") and len(name) < 90:
        raw = sparse(how, name, data + bytes(3000), [(0, 20), (20, len(data) - 20), (len(data) + 1000, 1)])
        t.fileobj.write(raw)
        t.offset, number = t.offset + len(raw), (number + 1) % 200
        continue
      info.size, number = len(data), (number + 1) % 200
      try:
        t.addfile(info, io.BytesIO(data))
      except ValueError:
        continue  # ustar: the name is too long
    data = buffer.getvalue()[: t.offset]
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024)), encoding="utf-8", errors="surrogateescape") as oracle:
      for m in oracle:
        if m.isreg():
          expected.append((m.name, oracle.extractfile(m).read(), len(file) + m.offset_data + m.size))
    file += data + bytes(zeros)
  return file, expected


def stem(name: str) -> str:
  return str(PurePosixPath(name)).rpartition(".")[0]


def edit(name: str) -> str:
  """What an edit is called that a part may belong to."""
  return re.sub(r"\.(input|output|instruction|edit)$", "", stem(name))


def check(path, file: bytes, expected, monkeypatch) -> None:
  """Every member is in a document, or counted and named."""
  path.write_bytes(file)
  monkeypatch.setattr(layout_module, "Remarks", Everything)
  reported = set()
  monkeypatch.setattr(BadRecords, "report", lambda self, *what: (reported.add(str(what[1])), REPORT(self, *what)))
  found = {(m.name, tar_members.read(path, m)) for m in tar_members.scan(path).members}
  assert {(name, data) for name, data in expected} <= found
  try:
    source = tar_source(path, resolution=1, max_bad_share=1.0, pairs="to_text")
  except BadRequest as e:
    assert "holds no sample" in str(e) or "is bad so far" in str(e) or "are bad so far" in str(e)
    assert not any(stem(n) and stem(n)[-1] not in "/." and n.endswith((".png", ".txt", ".json")) and "/." not in n
                   for n, _ in expected if not PurePosixPath(n).name.startswith("."))  # fmt: skip
    return
  documents = [source[i] for i in range(len(source))]
  assert source.bad.count >= sum(d is None for d in documents)
  samples = [s for s, d in zip(source.layout._samples, documents) if d is not None]
  used = {m.name for s in samples for m in (*s.pictures, *(t for _, t in s.texts))}
  bad = {record.partition("#")[0] for record in reported}
  for name, _ in expected:
    named = any(f"{path.name}/{n}" in source.remarks.names for n in (name, PurePosixPath(name)))
    assert name in used or {stem(name), edit(name)} & bad or named, name
  for sample, document in zip(source.layout._samples, documents):
    if document is not None:
      is_edit = len(document.images) == 2
      assert document.id == printable(f"{path.name}/{sample.name}:{'edit' if is_edit else 'to_text'}")
      colors, text = [int(i.pixels[0, 0, 0]) for i in document.images], int(document.texts[0].text)
      stems = (sample.name.partition("#")[0], "a")  # a hard link has the bytes of a.png, which all of them name
      ours = [(name, data.rstrip(b"\0")) for name, data in expected if {stem(name), is_edit and edit(name)} & {*stems}]
      for value in (*colors, text):  # numbers are told apart but for those two hundred members away
        assert any(data == body(name, "good", value).rstrip(b"\0") for name, data in ours)


def test_every_member_is_read_or_named(tmp_path, monkeypatch):
  @run_many
  @given(LAYOUT)
  def whole(layout):
    file, expected = build(layout)
    check(tmp_path / "a.tar", file, [(name, data) for name, data, _ in expected], monkeypatch)

  whole()


def test_what_lies_before_a_cut_is_read_or_named(tmp_path, monkeypatch):
  @run_many
  @given(LAYOUT, st.floats(0, 1))
  def cut(layout, share):
    file, expected = build(layout)
    at = int(share * len(file))
    check(tmp_path / "a.tar", file[:at], [(name, data) for name, data, end in expected if end <= at], monkeypatch)

  cut()


def test_harmed_files_give_what_they_can(tmp_path):
  @run_many
  @given(LAYOUT, st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), min_size=1, max_size=4))
  def harmed(layout, harms):
    data = bytearray(build(layout)[0])
    for share, harm in harms:
      grain = 512 if len(harm) > 100 else 1
      at = int(share * len(data)) // grain * grain
      data[at : at + len(harm)] = harm
    (tmp_path / "a.tar").write_bytes(data)
    try:
      source = tar_source(tmp_path / "a.tar", resolution=1, max_bad_share=1.0)
    except BadRequest:
      return
    assert sum(source[i] is None for i in range(len(source))) <= source.bad.count

  harmed()

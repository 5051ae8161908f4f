"""Tar files as people have them: each sample is read, or counted and named."""

import io
import os
from pathlib import Path
import tarfile

import numpy as np
import PIL.Image
import pytest
from sources import tar_source
import tiny

from orthus_jax.data.prepared import writer as prepared
from orthus_jax.data.sources import tar_members
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.errors import BadRequest


def picture(color: int, kind: str = "PNG") -> bytes:
  buffer = io.BytesIO()
  PIL.Image.new("RGB", (8, 8), (color, color, color)).save(buffer, kind)
  return buffer.getvalue()


def archive(members, format=tarfile.PAX_FORMAT) -> bytes:
  """A tar file of (name, bytes) pairs; names may repeat."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as t:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      t.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def pairs(*names: str) -> list[tuple[str, bytes]]:
  return [m for i, n in enumerate(names) for m in ((f"{n}.png", picture(i)), (f"{n}.txt", b"box %d" % i))]


def read(path) -> tuple[dict[str, int], LayoutSource]:
  """Names without their file's, with the picture's colour, of all that can be read."""
  source = tar_source(path, resolution=8, max_bad_share=1.0, pairs="to_text")
  found = [source[i] for i in range(len(source))]
  return {d.id.removesuffix(":to_text").split("/", 1)[1]: int(d.images[0].pixels[0, 0, 0]) for d in found if d}, source


def write(folder, data: bytes, name: str = "a.tar") -> Path:
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(data)
  return folder / name


# --- sparse members -------------------------------------------------------------------------------------------------


def sparse(form: str, name: str, data: bytes, stretches) -> bytes:
  """A member with holes as GNU tar writes it, in its old form or one of pax's three; what lies in a hole isn't stored."""
  stored = b"".join(data[at : at + n] for at, n in stretches)
  pad = lambda b: b + bytes(-len(b) % 512)  # noqa: E731
  info = tarfile.TarInfo(name)
  if form == "gnu":
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(stored)
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    number = lambda n: b"%011o\0" % n  # noqa: E731
    entries = b"".join(number(at) + number(n) for at, n in stretches)
    head[386 : 386 + len(entries[:96])] = entries[:96]
    head[482:495] = bytes([len(entries) > 96]) + number(len(data))
    head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]
    more = [entries[i : i + 504] for i in range(96, len(entries), 504)]
    blocks = [m.ljust(504, b"\0") + bytes([i + 1 < len(more)]).ljust(8, b"\0") for i, m in enumerate(more)]
    return bytes(head) + b"".join(blocks) + pad(stored)
  numbers = [n for stretch in stretches for n in stretch]
  headers = {"GNU.sparse.name": name, "GNU.sparse.realsize": str(len(data))}
  if form == "1.0":
    headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    stored = pad("".join(f"{n}\n" for n in (len(stretches), *numbers)).encode()) + stored
  elif form == "0.1":
    headers |= {"GNU.sparse.size": str(len(data)), "GNU.sparse.map": ",".join(map(str, numbers))}
  if form == "0.0":  # keys that repeat, in order
    records = [("GNU.sparse.size", len(data))]
    records += [(f"GNU.sparse.{k}", v) for at, n in stretches for k, v in (("offset", at), ("numbytes", n))]
    body = b"".join(_record(k, str(v)) for k, v in records)
    head = tarfile.TarInfo("PaxHeader")
    head.type, head.size, info.size = tarfile.XHDTYPE, len(body), len(stored)
    return head.tobuf(tarfile.USTAR_FORMAT) + pad(body) + info.tobuf(tarfile.USTAR_FORMAT) + pad(stored)
  info.name, info.size, info.pax_headers = "GNUSparseFile.1/x", len(stored), headers
  return info.tobuf(tarfile.PAX_FORMAT) + pad(stored)


def _record(key: str, value: str) -> bytes:
  length = len(key) + len(value) + 3
  return next(r for n in range(length, length + 5) if len(r := f"{n} {key}={value}\n".encode()) == n)


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("holes", [1, 2, 40])
def test_sparse_members_are_read_as_tarfile_reads_them(tmp_path, form, holes):
  pixels = np.full((64, 64, 3), 200, np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "BMP")
  data = bytearray(buffer.getvalue())
  edges = np.linspace(60, len(data), 2 * holes + 1).astype(int).tolist()
  for begin, end in zip(edges[1::2], edges[2::2]):
    data[begin:end] = bytes(end - begin)
  stretches = [(0, edges[1]), *zip(edges[2::2], [b - a for a, b in zip(edges[2::2], [*edges[3::2], len(data)])])]
  body = sparse(form, "s.bmp", bytes(data), stretches) + archive([("s.txt", b"a cap"), *pairs("t")])
  file = write(tmp_path, body)
  with tarfile.open(file) as t:
    assert t.extractfile("s.bmp").read() == data
  members = tar_members.scan(file).members
  assert [m.name for m in members] == ["s.bmp", "s.txt", "t.png", "t.txt"]
  assert tar_members.read(file, members[0]) == data
  found, source = read(file)
  assert set(found) == {"s", "t"} and not source.bad.count
  with_hole = tar_source(file, resolution=64, pairs="to_text")[0].images[0].pixels
  np.testing.assert_array_equal(with_hole, np.asarray(PIL.Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("stretches", [[(0, 500), (400, 100)], [(0, 500), (1900, 200)], [(500, 10), (0, 10)]])
def test_a_map_of_holes_that_lies_is_named(tmp_path, caplog, stretches):
  body = sparse("0.1", "s.png", picture(1).ljust(2000, b"\0"), stretches)
  found, source = read(write(tmp_path, body + archive([("s.txt", b"cap"), *pairs("t")])))
  assert list(found) == ["t"] and source.bad.distinct == 2  # the member, and the text without it
  assert "s.png: it is sparse, and its map of holes can't be read" in caplog.text


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names, found", [
    (["22.00", "22.01", "22.02"], ["22.00", "22.01", "22.02"]),
    (["2200", "22.01", "2202", "22.03"], ["2200", "22.01", "2202", "22.03"]),
    (["v1.0/a", "v1.0/b.c.d", "./e"], ["v1.0/a", "v1.0/b.c.d", "e"]),
    (["a", "a.1", "a..2"], ["a", "a.1", "a..2"]),
])  # fmt: skip
def test_names_with_dots_pair_up_by_the_last_one(tmp_path, names, found):
  by_name, source = read(write(tmp_path, archive(pairs(*names))))
  assert by_name == {n: i for i, n in enumerate(found)} and not source.bad.count and not source.remarks.counts


def test_pictures_before_texts_pair_up_under_one_name(tmp_path):
  members = pairs("2.1", "2.2", "2.3")
  assert list(read(write(tmp_path, archive(members[::2] + members[1::2])))[0]) == ["2.1", "2.2", "2.3"]


def test_names_that_do_not_pair_up_are_counted(tmp_path, caplog):
  members = [("s0.input.png", picture(0)), ("s0.output.txt", b"no"), *pairs("s1"), ("s2.en.txt", b"en"), ("s2.png", picture(2))]
  found, source = read(write(tmp_path, archive(members)))
  assert list(found) == ["s1"] and source.bad.distinct == 4
  for name in ("s0.input", "s0.output", "s2.en", "s2"):
    assert f"a.tar, {name}: the sample has no" in caplog.text


def test_a_mask_beside_a_photograph_is_passed_over_and_named(tmp_path, caplog):
  for i, kinds in enumerate(["jpg png", "gif jpg", "png jpeg", "bmp JPG"]):
    members = [(f"s{i}.{k}", picture(200 if k[0] in "jJ" else 0, {"j": "JPEG"}.get(k[0].lower(), k))) for k in kinds.split()]
    found, source = read(write(tmp_path, archive([*members, (f"s{i}.txt", b"a")])))
    assert found == {f"s{i}": 200} and sum(source.remarks.counts.values()) == 1
  assert "beside a whole sample of their name: 1 (a.tar/s0.png)" in caplog.text


def test_two_parts_of_one_name_are_a_bad_sample(tmp_path, caplog):
  found, source = read(write(tmp_path, archive(pairs("s1", "s1", "s2") + [("s3.PNG", picture(1)), *pairs("s3")])))
  assert list(found) == ["s2"] and source.bad.distinct == 2
  assert "s1: more than one .png is called s1" in caplog.text and "s3: more than one .png is called s3" in caplog.text


def test_one_name_further_on_is_another_sample(tmp_path, caplog):
  found, source = read(write(tmp_path, archive(pairs("s1", "s2", "s1"))))
  assert found == {"s1": 0, "s2": 1, "s1#2": 2} and not source.bad.count
  assert "samples of one name in a file, numbered: 1 (a.tar/s1)" in caplog.text


def test_names_that_are_not_utf8_are_escaped(tmp_path, caplog):
  members = pairs("caf\udce9", "a\nb") + [("caf\udcff.cls", b"1"), ("odd\udce0.txt", b"no picture")]
  file = write(tmp_path, archive(members, tarfile.GNU_FORMAT))
  found, _ = read(file)
  assert list(found) == ["caf\\xe9", "a\\nb"]
  assert "a.tar, odd\\xe0: the sample has no picture" in caplog.text and "a.tar/caf\\xff.cls" in caplog.text
  source = tar_source(file, resolution=8, max_bad_share=1.0)
  made = prepared.prepare(source, tiny.tokenizer(), tiny.config(), tmp_path / "out", images="pixels")
  assert made["documents"] == 4


# --- what a file or a folder may hold besides ------------------------------------------------------------------------


def test_what_is_passed_over_is_counted_and_named(tmp_path, caplog):
  members = pairs("a") + [("a.cls", b"1"), ("__MACOSX/._a.png", b"x"), ("README", b"x"), ("b.mp4", b"x"), ("c.cls", b"2")]
  data = io.BytesIO(archive(members))
  with tarfile.open(fileobj=data, mode="a") as t:
    kinds = {"l.png": tarfile.SYMTYPE, "h.png": tarfile.LNKTYPE, "f.png": tarfile.FIFOTYPE, "d": tarfile.DIRTYPE}
    for name, kind in kinds.items():
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, "a.png" if name != "h.png" else "gone.png"
      t.addfile(info)
  found, source = read(write(tmp_path, data.getvalue()))
  assert list(found) == ["a"] and not source.bad.count
  assert source.remarks.counts == {
      ".cls members passed over": 2, "hidden files passed over": 1, "members passed over that have no extension": 1,
      ".mp4 members passed over": 1, "links passed over": 2, "members passed over that are no files": 1,
  }  # fmt: skip
  for line in (".cls members passed over: 2 (a.tar/a.cls, a.tar/c.cls)", "links passed over: 2 (a.tar/l.png, a.tar/h.png)"):
    assert line in caplog.text


@pytest.mark.parametrize("kind, extension", [
    ("AVIF", "avif"), ("JPEG", "jfif"), ("JPEG", "JPE"), ("JPEG2000", "jp2"), ("JPEG2000", "j2k"), ("PPM", "ppm"),
    ("TGA", "tga"), ("DIB", "dib"), ("QOI", "qoi"), ("MPO", "mpo"), ("SGI", "rgb"), ("PCX", "pcx"), ("ICO", "ico"),
])  # fmt: skip
def test_pictures_of_every_kind_are_found(tmp_path, kind, extension):
  try:
    data = picture(100, kind)
  except KeyError:
    pytest.skip(f"Pillow is built without {kind}")
  found, _ = read(write(tmp_path, archive([(f"a.{extension}", data), ("a.txt", b"cap")])))
  assert abs(found["a"] - 100) < 9


def test_hard_links_stand_for_what_they_link_to(tmp_path):
  data = io.BytesIO(archive(pairs("a", "b")))
  with tarfile.open(fileobj=data, mode="a") as t:
    for name, target in (("c.png", "b.png"), ("c.txt", "a.txt")):  # as a tool that looks for duplicates leaves them
      info = tarfile.TarInfo(name)
      info.type, info.linkname = tarfile.LNKTYPE, target
      t.addfile(info)
  found, source = read(write(tmp_path, data.getvalue()))
  assert found == {"a": 0, "b": 1, "c": 1} and source[2].texts[0].text == "box 0" and not source.remarks.counts


def test_archives_behind_each_other_are_read(tmp_path, caplog):
  one, two, three = archive(pairs("s0", "s1")), archive(pairs("s2")), archive(pairs("s2"), tarfile.USTAR_FORMAT)
  found, source = read(write(tmp_path, one + two + three))
  assert list(found) == ["s0", "s1", "s2", "s2#2"] and not source.bad.count
  assert "archives behind another in their file, read too: 2 (a.tar/byte 10,240, a.tar/byte 20,480)" in caplog.text
  found, source = read(write(tmp_path, one + b"hello".ljust(512) + two[:-10240] + three))
  assert list(found) == ["s0", "s1", "s2"] and source.bad.distinct == 1
  found, source = read(write(tmp_path, one[:3700] + archive(pairs("s8", "s9"))))  # what follows a cut isn't aligned
  assert {"s0", "s9"} <= set(found) and source.bad.distinct >= 1


def test_empty_files_are_named_beside_others(tmp_path, caplog):
  write(tmp_path, archive(pairs("a")))
  for name, data in {"0.tar": b"", "1.tar": bytes(10240), "2.tar": archive([("x.cls", b"1")])}.items():
    write(tmp_path, data, name)
  source = tar_source(tmp_path, resolution=8, max_bad_share=0)
  assert len(source) == 2 and all(source[i] for i in range(2))
  assert "tar files without a sample: 3 (0.tar, 1.tar, 2.tar)" in caplog.text
  (tmp_path / "a.tar").unlink()
  with pytest.raises(BadRequest, match="holds no sample.*without a sample: 3"):
    tar_source(tmp_path, resolution=8)


def test_folders_are_searched(tmp_path, caplog):
  write(tmp_path, archive(pairs("a")), "x/0.tar")
  write(tmp_path, archive(pairs("b")), "y/z/0.TAR")
  write(tmp_path, archive(pairs("c")), "y/.git/0.tar")
  write(tmp_path, b"{}", "x/stats.json")
  os.symlink(tmp_path, tmp_path / "y" / "loop")
  found, source = read(tmp_path)
  assert [source[i].id for i in range(2)] == ["x/0.tar/a:to_text", "y/z/0.TAR/b:to_text"]
  assert "hidden files or folders passed over: 1 (y/.git)" in caplog.text
  assert ".json files passed over, which are no tar files: 1 (x/stats.json)" in caplog.text


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.TAR.XZ", "in/b.tar.zst"])
def test_compressed_files_are_refused_not_passed_over(tmp_path, name):
  write(tmp_path, archive(pairs("a")))
  file = write(tmp_path, b"\x1f\x8b" + bytes(100), name)
  with pytest.raises(BadRequest, match=rf"{file.name} is compressed .*unpack it"):
    tar_source(tmp_path, resolution=8)


def test_compressed_files_are_passed_over_once_unpacked(tmp_path, caplog):
  write(tmp_path, archive(pairs("a")))
  write(tmp_path, b"\x1f\x8b" + bytes(100), "a.tar.gz")
  assert list(read(tmp_path)[0]) == ["a"]
  assert "compressed files passed over beside what they were unpacked to: 1 (a.tar.gz)" in caplog.text


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts, said", [
    ({"json": b'{"url": "u", "width": 24}', "txt": b"a cat"}, "a cat"),  # in img2dataset's order
    ({"json": b'{"caption": null}', "txt": b"a cat"}, "a cat"),
    ({"json": b'[{"bbox": [1, 2]}]', "txt": b"a cat"}, "a cat"),
    ({"json": b"{", "caption": b"a cat"}, "a cat"),
    ({"json": b" " * (1 << 21), "txt": b"a cat"}, "a cat"),
    ({"txt": b" \n", "json": b'{"caption": "a cat"}'}, "a cat"),
    ({"caption": b"", "txt": b"\xef\xbb\xbf", "json": b'\xef\xbb\xbf{"caption": "a cat"}'}, "a cat"),
    ({"caption": b"a dog", "txt": b"a cat"}, "a cat"),
    ({"json": b'{"text": null, "caption": "a cat"}'}, "a cat"),
    ({"json": b'{"text": "STOP", "caption": "a road sign"}'}, "a road sign"),
    ({"json": b'{"caption": " ", "text": "a cat"}'}, "a cat"),
    ({"json": b'{"TEXT": "a cat", "URL": "u"}'}, "a cat"),
    ({"json": b'{"Caption": "a cat"}'}, "a cat"),
    ({"json": b'{"caption": 5}'}, None),
    ({"json": b'{"captions": ["a cat"]}', "txt": b""}, None),
])  # fmt: skip
def test_the_first_text_that_is_one_is_taken(tmp_path, texts, said):
  write(tmp_path, archive([("a.png", picture(1)), *((f"a.{e}", t) for e, t in texts.items())]))
  source = tar_source(tmp_path, resolution=8, max_bad_share=1.0)
  document = source[0]
  assert (document and document.texts[0].text) == said and source.bad.distinct == (said is None)

"""Pictures that a data set names by address, found in a folder; nothing is fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.errors import BadRequest

_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

USAGE = """Pictures are never fetched: they lie in DIR/images, or the folder given by --pictures, as one of
    <SHA-256 of the address>.jpg    or .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff, .avif or no ending; in hexadecimal
    <MD5 of the address>.jpg        likewise
    photo.jpg                       of https://a.b/c/photo.jpg?x=y; only if no two addresses end alike
One that isn't there is left out of its document, and counted; a document that has none left is skipped.
"""


class PictureStore:
  """A folder of pictures, by their addresses.

  Raises:
    BadRequest: there is no such folder.
  """

  def __init__(self, name: str, folder: Path, options: Options, remarks: Remarks):
    self.folder = options.pictures or folder / "images"
    self._remarks = remarks
    if not self.folder.is_dir():
      raise BadRequest(
          f"{name} names its pictures by address, and none is fetched: there is no folder {str(self.folder)!r} of them;"
          " give one by --pictures (`orthus prepare --source=" + name + " --help` says how they are called)"
      )

  def find(self, address: Any, name: str = "") -> Path | None:
    """The file of a picture, or None where it isn't there, which is counted each time.

    Args:
      address: the picture's.
      name: of a file in the folder, which is looked for first.

    Raises:
      BadRequest: the address isn't one, or the name leads out of the folder.
    """
    if not isinstance(address, str) or not address:
      raise BadRequest(f"a picture's address must be a string, got {address!r}")
    data = address.encode("utf-8", "surrogatepass")
    hashes = [h(data).hexdigest() + suffix for h in (hashlib.sha256, hashlib.md5) for suffix in _SUFFIXES]
    files = [self.folder / candidate for candidate in (*hashes, _base_name(address)) if candidate]
    if name:
      files.insert(0, local_picture(self.folder, name, what="a picture's name"))
    for file in files:
      if file.is_file():
        return file
    self._remarks.add("pictures left out of their documents, which aren't in the folder", address)
    return None


def _base_name(address: str) -> str:
  try:
    name = unquote(urlsplit(address).path.rpartition("/")[2])
  except ValueError:  # such as a broken IPv6 host
    return ""
  return "" if name in (".", "..") or "/" in name or "\0" in name or len(name.encode(errors="replace")) > 255 else name

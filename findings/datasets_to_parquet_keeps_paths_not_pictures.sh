#!/usr/bin/env bash
# datasets' Dataset.to_parquet writes where pictures lie, not the pictures.
#
# One would guess: a Parquet file of an image data set holds the pictures, as the one that push_to_hub makes does, and as its
#   documentation has Parquet files store them ("bytes" in a struct).
# What happens: of a data set loaded from a folder each row gets {"bytes": null, "path": an absolute path}, whole and without a
#   word; moved to another machine, or after the folder is gone, the file holds captions alone. Pictures that were decoded
#   and set anew (by map) do get their bytes. embed_table_storage, mapped over the Arrow table first, brings all of them in.
# Why it matters here: `--source=parquet` reads such files, where every row is bad: absolute paths aren't followed. The docs
#   say how to write files that hold the pictures.
# Versions: datasets 5.2.0, pyarrow 26.0.1, Pillow 12.3.0, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-27.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" &&
  "$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 Pillow==12.3.0 numpy==2.4.6; } || exit 2
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version
import os
import sys

import datasets
from datasets.table import embed_table_storage
import PIL.Image
import pyarrow.parquet as parquet

EXPECTED = [True, False, False]  # no bytes: as loaded, set anew by map, embedded

datasets.disable_progress_bars()
os.makedirs("pictures/train")
PIL.Image.new("RGB", (4, 4), (200, 0, 0)).save("pictures/train/0.png")
with open("pictures/train/metadata.csv", "w") as f:
  f.write("file_name,caption\n0.png,red\n")
loaded = datasets.load_dataset("imagefolder", data_dir="pictures", split="train")
anew = loaded.map(lambda row: {"image": row["image"].rotate(90)})
embedded = loaded.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
print("datasets", version("datasets"), "pyarrow", version("pyarrow"))
found = []
for name, data in (("as loaded", loaded), ("set anew by map", anew), ("embedded", embedded)):
  data.to_parquet("out.parquet")
  image = parquet.read_table("out.parquet").to_pylist()[0]["image"]
  size = None if image["bytes"] is None else len(image["bytes"])
  path = "absolute" if os.path.isabs(image["path"] or "") else image["path"]
  print(f"{name}: bytes {size}, path {path}")
  found.append(image["bytes"] is None)
sys.exit(0 if found == EXPECTED else 1)
PYTHON

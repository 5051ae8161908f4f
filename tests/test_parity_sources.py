"""Samples that the formats' own tools write are read as those tools read them."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from orthus_jax.data.sources.imagefolder import ImageFolder
from orthus_jax.data.sources.img2dataset import Img2dataset
from orthus_jax.data.sources.layout import Options
from orthus_jax.data.sources.parquet import ParquetTable
from orthus_jax.data.sources.source import LayoutSource
from orthus_jax.data.sources.webdataset import WebDataset


def _library(name: str):
  if os.environ.get("ORTHUS_REQUIRE_PARITY") and name != "img2dataset":  # which asks for an old webdataset
    return __import__(name)
  return pytest.importorskip(name)


def pictures(n: int = 5) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return [rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(n)]


def read(layout, path, **options) -> dict[str, np.ndarray]:
  """Pictures by their texts; nothing may be bad."""
  source = LayoutSource(layout(path, Options(pairs="to_text", **options)), resolution=16, max_bad_share=0)
  assert [c for c in (ImageFolder, WebDataset, Img2dataset, ParquetTable) if c.recognise(path)] == [layout]
  return {d.texts[0].text: d.images[0].pixels for d in source}


def test_webdatasets_writer(tmp_path):
  webdataset = _library("webdataset")
  with webdataset.TarWriter(str(tmp_path / "0.tar")) as sink:
    for i, pixels in enumerate(pictures()):
      sample = {"__key__": f"part/{i:04d}", "png": pixels, "txt": f"text {i}", "json": {"caption": "another"}, "cls": i}
      sink.write(sample)
  found = read(WebDataset, tmp_path)
  theirs = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False).decode("rgb8")
  assert len(found) == 5
  for sample in theirs:
    np.testing.assert_array_equal(found[sample["txt"]], sample["png"])
  assert set(read(WebDataset, tmp_path, text=("json.caption",))) == {"another"}


def test_datasets_imagefolder_and_parquet(tmp_path):
  datasets = _library("datasets")
  folder = tmp_path / "folder" / "train"
  folder.mkdir(parents=True)
  lines = ["file_name,caption,NA"]
  for i, pixels in enumerate(pictures()):
    PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    lines.append(f'{i}.png,"text ""{i}"", more",{i}')
  (folder / "metadata.csv").write_text("\n".join(lines))
  theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=str(tmp_path / "c"), split="train")
  found = read(ImageFolder, tmp_path / "folder")
  assert set(found) == set(theirs["caption"])
  for row in theirs:
    np.testing.assert_array_equal(found[row["caption"]], np.asarray(row["image"]))
  (tmp_path / "parquet").mkdir()
  # to_parquet alone writes where the pictures lie (findings/datasets_to_parquet_keeps_paths_not_pictures.sh).
  embed = datasets.table.embed_table_storage
  whole = theirs.with_format("arrow").map(embed, batched=True, cache_file_name=str(tmp_path / "whole.arrow"))
  whole.with_format(None).to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"))
  again = read(ParquetTable, tmp_path / "parquet")
  assert set(again) == set(found) and all((again[k] == found[k]).all() for k in found)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_img2dataset(form, tmp_path):
  img2dataset = _library("img2dataset")
  rows = []
  (tmp_path / "pictures").mkdir()
  for i, pixels in enumerate(pictures()):
    file = tmp_path / "pictures" / f"{i}.png"
    PIL.Image.fromarray(pixels).save(file)
    rows.append({"url": f"file://{file}", "alt": f"text {i}"})
  rows.append({"url": f"file://{tmp_path}/gone.png", "alt": "gone"})
  (tmp_path / "urls.json").write_text(json.dumps(rows))
  out = tmp_path / "out"
  img2dataset.download(
      url_list=str(tmp_path / "urls.json"), input_format="json", url_col="url", caption_col="alt", output_folder=str(out),
      image_size=16, encode_format="png", encode_quality=1, output_format=form, processes_count=1, thread_count=2,
      enable_wandb=False,
  )  # fmt: skip
  layout = WebDataset if form == "webdataset" else Img2dataset
  found = read(layout, out)
  assert set(found) == {f"text {i}" for i in range(5)}
  for i, pixels in enumerate(pictures()):
    np.testing.assert_array_equal(found[f"text {i}"], pixels)
  assert sum(layout(out).remarks.counts.values()) == 1  # the row that failed

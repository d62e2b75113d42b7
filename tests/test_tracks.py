"""Other data sets go through all stages: a folder of photos, and OSV5M in miniature."""

import subprocess
import sys

import numpy as np
import pandas as pd
from kills_program import write_photos
from miniatures import osv5m as miniature

from lib.settings import PROJECT


def finished(command, settings):
    """What the pipeline prints under ``settings``; it must not fail."""
    command = [*command, *(word for setting in settings for word in ("--set", setting))]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def test_any_folder_of_photos_with_a_table_goes_through_all_stages(tmp_path):
    """Photos under flat names and a CSV in the style of IM2GPS3k; no splits, so they are made.

    The notebooks that show photos and places are executed, the others have nothing of the data set's own.
    """
    write_photos(tmp_path)
    places = pd.read_csv(tmp_path / "places.csv")
    for path in places["path"]:
        (tmp_path / "photos" / path).rename(tmp_path / "photos" / f"{path[:2]}_city@home.png")
    names = places["path"].str[:2] + "_city@home.png"
    table = {"IMG_ID": names, "AUTHOR": "nobody", "LAT": places["latitude"], "LON": places["longitude"]}
    pd.DataFrame(table).to_csv(tmp_path / "places.csv", index=False)
    own = ["dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"dataset.csv={tmp_path / 'places.csv'}"]
    own += ["training.strategies=infonce,semivariogram", "training.seeds=0"]
    own += ["semivariogram.lag_width_rad=0.1"]
    stages = [sys.executable, "-m", "lib.stages", "smoke", str(tmp_path / "run"), *own]
    subprocess.run(stages, cwd=PROJECT, check=True, capture_output=True, text=True)
    command = [sys.executable, "-m", "lib.pipeline", "--profile", "smoke", "--run", str(tmp_path / "run")]
    finished([*command, "--only", "01,05"], own)
    accuracy = pd.read_csv(tmp_path / "run" / "tables" / "accuracy.csv")
    assert set(accuracy["strategy"]) == {"infonce", "semivariogram", "nearest_neighbour"}
    assert accuracy["n"].tolist() == [19, 19, 19]
    assert (tmp_path / "run" / "maps" / "predictions.html").exists()


def test_osv5m_in_miniature_goes_through_the_notebooks_with_clip(tmp_path, tiny_clip):
    """The paper's own track by its own code: archives, CLIP with augmented views, GeoCLIP's weights to start
    from and as a row. Notebooks 02 and 03 have nothing of the data set's own."""
    (tmp_path / "osv5m").mkdir()
    miniature.write(tmp_path / "osv5m")
    chosen = [
        f"dataset.root={tmp_path / 'osv5m'}", "dataset.validation=30", "dataset.train_shards=2",
        "dataset.download=false",
        f"backbone.name={tiny_clip}", "backbone.workers=1", "backbone.shard_size=128",
        "backbone.batch_size=64",
        "backbone.views=2", "semivariogram.lag_width_rad=0.05", "training.batch_size=64",
        "training.queue_size=64",
        "training.epochs=2", "training.seeds=0,1", "training.strategies=infonce,semivariogram",
        "training.location_encoder=geoclip", "training.frequencies=geoclip", "training.image_head=geoclip",
        "evaluation.gallery=train",
        "evaluation.bootstrap=100",
    ]  # fmt: skip
    command = [sys.executable, "-m", "lib.pipeline", "--profile", "osv5m_small", "--device", "cpu"]
    command += ["--run", str(tmp_path / "run"), "--only", "01,04,05,06"]
    said = finished(command, chosen)
    accuracy = pd.read_csv(tmp_path / "run" / "tables" / "accuracy.csv")
    assert accuracy.groupby("strategy")["seed"].apply(list).to_dict() == {
        "infonce": [0, 1], "semivariogram": [0, 1], "geoclip_pretrained": [0],
        "nearest_neighbour": [0],
    }  # fmt: skip
    assert (accuracy["n"] == 60).all()
    comparison = pd.read_csv(tmp_path / "run" / "tables" / "comparison.csv")
    assert set(comparison["strategy"]) == {"semivariogram", "geoclip_pretrained", "nearest_neighbour"}
    left_out = pd.read_csv(tmp_path / "run" / "tables" / "left_out.csv")
    assert len(left_out) == 3 and "3 photos or rows are left out" in said
    assert np.load(tmp_path / "run" / "features" / "views.npy").shape == (2, 209, 768)
    manifest = pd.read_parquet(tmp_path / "run" / "manifest.parquet")
    assert {"climate", "land_cover", "sub-region", "continent"} <= set(manifest)
    assert manifest["path"].str.contains(".zip/").all()
    page = (tmp_path / "run" / "maps" / "predictions.html").read_text()
    assert "have no thumbnail" not in page and "geoclip_pretrained" in page

"""run_all.sh's work, end to end in the smoke profile: all notebooks, the files that other tools read, a
second call."""

import errno
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL
from test_code import STAGES
from test_evaluation import DEMANDED
from test_locks import OWNER, start

from lib import exchange, pipeline
from lib.runs import Run
from lib.settings import PROJECT
from lib.show import pages
from lib.show import reference as reference_module
from lib.train import training

COMPARISON = ["split", "strategy", "baseline", "metric", "difference", "ci_low", "ci_high", "seeds", "n"]
PREDICTIONS = ["id", "split", "strategy", "seed", "latitude", "longitude"]
PREDICTIONS += ["predicted_latitude", "predicted_longitude", "error_km", "cell"]
FIT = {"family", "nugget", "partial_sill", "length_scale_rad", "exponent", "range_rad", "range_km", "pairs"}
FIT |= {"backbone", "photos"}


PIPELINE = [sys.executable, "-m", "lib.pipeline"]


def run_pipeline(command):
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run and what it printed; its photos go to a folder of its own."""
    folder = tmp_path_factory.mktemp("smoke")
    command = [*PIPELINE, "--profile", "smoke", "--run", str(folder / "run")]
    command += ["--device", "cpu", "--set", f"dataset.root={folder / 'photos'}"]
    done = run_pipeline(command)
    assert done.returncode == 0, done.stderr[-3_000:]
    return folder / "run", command, done.stdout


def test_every_notebook_is_executed_without_error_shows_its_figures_and_names_no_folder(smoke):
    """Of the folders only that of the photos, a setting of this test's, lies outside the project."""
    folder, _, _ = smoke
    for notebook in pipeline.notebooks().values():
        path = folder / "notebooks" / notebook.name
        cells = nbformat.read(path, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
        assert all(cell.execution_count for cell in code), path.name
        outputs = [output for cell in code for output in cell.outputs]
        assert "error" not in [output.output_type for output in outputs]
        said = [output.text for output in outputs if output.get("name") == "stderr"]
        assert not [text for text in said if "Warning" in text]
        shown = [output for output in outputs if "image/png" in output.get("data", {})]
        draws = r"(figures\.save|second_figures\.\w+|explore\.\w+)\("
        assert len(shown) == sum(bool(re.search(draws, cell.source)) for cell in code) > 0, path.name
    for path in (folder / "notebooks").iterdir():
        content = path.read_text(encoding="utf-8")
        assert str(PROJECT) not in content and sys.prefix not in content, path.name


def test_the_tables_have_the_columns_that_other_tools_read(smoke):
    folder, _, _ = smoke
    accuracy = pd.read_csv(folder / "tables" / "accuracy.csv")
    assert list(accuracy)[: len(DEMANDED)] == DEMANDED
    fractions = accuracy.filter(like="acc_").to_numpy()
    assert ((fractions >= 0) & (fractions <= 1)).all()
    assert set(COMPARISON) <= set(pd.read_csv(folder / "tables" / "comparison.csv"))
    curve = pd.read_csv(folder / "tables" / "semivariogram.csv")
    assert list(curve) == ["lag_km", "gamma", "variance", "pairs"]
    assert list(pd.read_parquet(folder / "predictions.parquet")) == PREDICTIONS
    assert set(json.loads((folder / "semivariogram.json").read_text())) >= FIT


def test_the_tables_follow_from_the_predictions(smoke):
    folder, _, _ = smoke
    predictions = pd.read_parquet(folder / "predictions.parquet")
    accuracy = pd.read_csv(folder / "tables" / "accuracy.csv").set_index(["strategy", "seed", "split"])
    for key, frame in predictions.groupby(["strategy", "seed", "split"]):
        assert accuracy.loc[key, "acc_750km"] == pytest.approx((frame["error_km"] <= 750).mean())
        assert accuracy.loc[key, "median_km"] == pytest.approx(np.median(frame["error_km"]))
    settings = json.loads((folder / "provenance.json").read_text())["settings"]
    assert set(predictions["strategy"]) == {*settings["training"]["strategies"], "nearest_neighbour"}


def test_provenance_and_checksums_name_what_it_takes_to_rebuild_and_check_the_run(smoke):
    folder, _, _ = smoke
    written = json.loads((folder / "provenance.json").read_text())
    assert set(written["seconds_by_notebook"]) == {path.stem for path in pipeline.notebooks().values()}
    receipts = [json.loads(path.read_text()) for path in (folder / "receipts").glob("training-*.json")]
    assert written["threads"] == sorted({receipt["machine"]["threads"] for receipt in receipts})
    assert written["packages"]["torch"].startswith("2.") and written["settings"]["profile"] == "smoke"
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stdout
    named = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert {"tables/accuracy.csv", "semivariogram.json", "maps/predictions.html", "index.html"} <= named
    assert not any(name.startswith(("receipts", "logs", ".")) for name in named)


def test_stages_name_the_functions_that_the_test_of_the_code_turns_round(smoke):
    receipts = {path.stem: json.loads(path.read_text()) for path in (smoke[0] / "receipts").glob("*.json")}
    for name, functions in STAGES.items():
        stage = {"training": "training-decayed_seed0", "curve": "semivariogram"}.get(name, name)
        assert set(receipts[stage]["needs"]["code"]) == set(functions), name


def test_an_exported_model_has_a_card(smoke, tmp_path, capsys):
    folder, _, _ = smoke
    assert exchange.main([str(folder), str(tmp_path), "--strategy", "semivariogram"]) == 1  # no CLIP features
    card = (tmp_path / "location-encoder" / "README.md").read_text()
    table = pd.read_csv(folder / "tables" / "accuracy.csv").query("strategy == 'semivariogram' and seed == 0")
    assert "`blue_marble`" in card and "`semivariogram`, seed 0" in card and "Not for" in card
    assert all(f"| {one.split} | {100 * one.acc_200km:.1f} |" in card for one in table.itertuples())
    assert "takes 768 features" in capsys.readouterr().err


def test_every_link_of_the_index_leads_somewhere(smoke):
    folder, _, _ = smoke
    page = (folder / "index.html").read_text()
    links = re.findall(r'(?:href|src)="(?!#|data:)([^"]+)"', page)
    assert len(links) > 20
    assert not [link for link in links if not (folder / link).exists()]


def test_a_second_call_executes_nothing_and_takes_seconds(smoke):
    folder, command, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ipynb")}
    started = time.monotonic()
    done = run_pipeline(command)
    assert done.returncode == 0 and time.monotonic() - started < 30  # 6 seconds where nothing else runs
    assert done.stdout.count("reused: same source, settings, code and results") == len(pipeline.notebooks())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.ipynb")} == before


def test_a_notebook_that_was_saved_with_its_outputs_is_the_same_one_and_with_another_cell_is_not(tmp_path):
    run, copy = Run.open("smoke", str(tmp_path / "run")), tmp_path / "02_saved.ipynb"
    needs, cells = [], nbformat.read(pipeline.notebooks()["02"], as_version=4)
    code = next(cell for cell in cells.cells if cell.cell_type == "code")
    for change in (
        {},
        {"outputs": [nbformat.v4.new_output("stream", text="1")]},
        {"source": "profile = 'x'"},
    ):
        code.update(change)
        nbformat.write(cells, copy)
        needs.append(pipeline._needs_of(copy, run, []))
    assert needs[0] == needs[1] != needs[2]


def test_a_notebook_of_the_studies_is_another_one_where_a_kept_table_has_changed(tmp_path, monkeypatch):
    run, found = Run.open("smoke", str(tmp_path / "run")), pipeline.notebooks()
    monkeypatch.setattr(pipeline, "KEPT", tmp_path / "kept")
    (tmp_path / "kept" / "tables").mkdir(parents=True)
    needs = []
    for text in ("1", "2"):
        (tmp_path / "kept" / "tables" / "of_study.csv").write_text(text)
        needs.append([pipeline._needs_of(found[number], run, []) for number in ("02", "07")])
    assert needs[0][0] == needs[1][0] and needs[0][1] != needs[1][1]


def test_a_notebook_is_executed_again_where_a_result_that_it_read_is_damaged(smoke, capsys):
    folder, command, _ = smoke
    path = folder / "checkpoints" / "decayed_seed1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert pipeline.main([*command[3:], "--only", "02,04"]) == 0
    said = capsys.readouterr().out
    assert said.count("reused: same source") == 1  # notebook 02 has not read it
    assert "again: training-decayed_seed1 is not current" in said and path.read_bytes() == whole
    assert re.search(rf"again   training-decayed_seed1: {path} is damaged", said)


def test_a_training_that_is_made_again_gives_the_same_bytes(smoke, capsys):
    """They depend on settings, code and inputs only, not on the process."""
    run = Run.finished(smoke[0])
    before = run.checkpoint("decayed", 0).read_bytes()
    run.checkpoint("decayed", 0).unlink()
    training.train_all(run, ["decayed"])
    assert "made    training-decayed_seed0" in capsys.readouterr().out
    assert run.checkpoint("decayed", 0).read_bytes() == before


@pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "06"])
def test_each_notebook_alone_makes_what_it_needs(tmp_path_factory, number):
    folder = tmp_path_factory.mktemp("alone")
    photos = tmp_path_factory.getbasetemp() / "photos of notebooks alone"
    settings = [part for one in (*SMALL, f"dataset.root={photos}") for part in ("--set", one)]
    asked = ["--profile", "smoke", "--run", f"{folder}/run", "--only", number, *settings]
    done = run_pipeline([*PIPELINE, *asked])
    assert done.returncode == 0, done.stderr[-3_000:]
    assert len(list((folder / "run" / "notebooks").glob("*.html"))) == 1


def broken_notebook(folder: Path, line: str) -> dict[str, Path]:
    sources = ["profile = 'smoke'\nrun_name = ''\noverrides = []", "print('so far so good')", line]
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{k}") for k, source in enumerate(sources)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(content, folder / "09_broken.ipynb")
    return {"09": folder / "09_broken.ipynb"}


def test_a_failing_notebook_stops_the_run_with_its_name_cell_and_last_line(tmp_path, monkeypatch, capsys):
    broken = broken_notebook(tmp_path, "raise RuntimeError('first line\\nthe photo is upside down')")
    monkeypatch.setattr(pipeline, "notebooks", lambda: broken)
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 1
    said = capsys.readouterr().err
    for part in ("09_broken.ipynb", "cell 4", "raise RuntimeError", "the photo is upside down"):
        assert part in said
    kept = nbformat.read(tmp_path / "run" / "notebooks" / "09_broken.ipynb", as_version=4)
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert any("so far so good" in output.get("text", "") for output in outputs)


def test_a_kernel_is_of_this_python_and_heeds_no_settings_of_the_user(tmp_path, monkeypatch, capsys):
    said = "sys.executable, matplotlib.rcParams['text.usetex'], 'own' in globals()"
    asking = broken_notebook(tmp_path, f"import sys, matplotlib; raise RuntimeError(({said}))")
    odd = {"kernels/python3/kernel.json": '{"argv": ["false"], "language": "python", "display_name": ""}'}
    odd |= {"profile_default/startup/own.py": "own = True", "matplotlibrc": "text.usetex: True"}
    for name, text in odd.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for variable in ("JUPYTER_PATH", "IPYTHONDIR", "MATPLOTLIBRC"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(pipeline, "notebooks", lambda: asking)
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 1
    assert f"RuntimeError: {(sys.executable, False, False)}" in capsys.readouterr().err


def test_a_disk_that_is_full_while_papermill_writes_is_one_sentence(tmp_path, monkeypatch, capsys):
    def half(_, target, **__):
        Path(target).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", half)
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run", "--only", "01"]) == 1
    assert f"{tmp_path}/run: cannot be written: No space left on device" in capsys.readouterr().err


def test_a_kernel_that_dies_is_one_sentence(tmp_path, monkeypatch, capsys):
    dying = broken_notebook(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(pipeline, "notebooks", lambda: dying)
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 1
    said = capsys.readouterr().err
    assert "09_broken.ipynb: its kernel died" in said and "memory" in said and "Traceback" not in said


def test_a_run_that_is_stopped_by_hand_says_so_without_a_traceback(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_execute_all", stopped)
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 130
    assert "started again it goes on" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_told_of_the_first_and_touches_nothing(tmp_path, capsys):
    owner = start(OWNER, tmp_path / "run")
    try:
        assert owner.stdout.readline() == "held\n"
        assert pipeline.main(["--profile", "smoke", "--device", "cpu", "--run", f"{tmp_path}/run"]) == 1
    finally:
        owner.kill()
        owner.wait()
    said = capsys.readouterr().err
    assert said.startswith(f"run_all.sh: {tmp_path}/run: another run writes here, process {owner.pid} on")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", ".owner"}


def test_a_part_of_the_notebooks_with_other_settings_leaves_the_provenance_of_the_whole_run(smoke, capsys):
    folder, command, _ = smoke
    before = (folder / "provenance.json").read_bytes()
    more = ["--only", "07", "--set", "training.beta=9"]
    assert pipeline.main([*command[3:], *more]) == 0
    assert "provenance.json and index.html stay" in capsys.readouterr().out
    assert (folder / "provenance.json").read_bytes() == before


def test_a_figure_that_is_gone_is_drawn_again(smoke, capsys):
    folder, command, _ = smoke
    (folder / "figures" / "density.png").unlink(missing_ok=True)
    (folder / "figures" / "places.png").unlink()
    assert pipeline.main([*command[3:], "--only", "01,02"]) == 0
    said = capsys.readouterr().out
    assert "places.png is gone" in said and said.count("reused: same source") == 1
    assert (folder / "figures" / "places.png").exists()


def test_a_file_that_is_called_as_a_profile_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMIVARIOGRAM_CALLER", str(tmp_path))
    for name in ("quick", "smoke", "mine.yaml"):
        (tmp_path / name).write_text("dataset: {train: 7}")
    assert pipeline._of_the_caller("quick") == "quick"
    assert pipeline._of_the_caller("mine.yaml") == str(tmp_path / "mine.yaml")
    assert pipeline._of_the_caller("sub/mine") == str(tmp_path / "sub" / "mine")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--profile quikc", "'quikc' is unknown; there are "),
        ("--set training.epoch=3", "did you mean 'epochs'"),
        ("--only 17", "no notebook 17"),
        *[(f"--run {name}", "would be a file's name") for name in ("..", ".")],
        *[(f"--run {name}", "a name of its own") for name in ("results/", "reference", "/")],
        ("--set training.strategies=infonce,residul", "there are infonce"),
        ("--set training.strategies=decayed", "needs infonce"),
        ("--set backbone=resnet", "registered: efficientnet-lite0"),
        ("--set evaluation.baselines=geoclip_pretrained", "takes raw features: set backbone.centred=false"),
        (
            "--set training.image_head=geoclip --set backbone.centred=false",
            "takes CLIP ViT-L/14 features; set backbone.name=openai/clip-vit-large-patch14",
        ),
        ("--set evaluation.gallery=trian", "take train, lattice, geoclip"),
        ("--set evaluation.gallery=nowhere.csv", "nowhere.csv: no such table"),
    ],
)
def test_a_mistake_on_the_command_line_is_answered_with_one_sentence_and_status_1(
    arguments, sentence, capsys
):
    results = f"{PROJECT}/results/"
    assert pipeline.main([results if word == "results/" else word for word in arguments.split()]) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--lab", "--profile", "smoke"], ["--prof", "smoke"]])
def test_an_option_that_is_none_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(arguments)
    assert "run_all.sh: error: " in capsys.readouterr().err


@pytest.fixture
def reference(smoke, tmp_path, monkeypatch):
    """The smoke run kept as its own reference; returns the run and the reference's folder."""
    folder, *_ = smoke
    kept = tmp_path / "smoke"
    shutil.copytree(folder / "tables", kept / "tables")
    shutil.copy(folder / "semivariogram.json", kept / "semivariogram.json")
    shutil.copy(folder / "provenance.json", kept / "provenance.json")
    monkeypatch.setattr("lib.show.reference.REFERENCE", tmp_path)
    return Run.open("smoke", str(folder)), kept


def test_a_run_reproduces_itself_and_a_figure_beyond_its_tolerance_is_called_not_reproduced(reference):
    run, kept = reference
    table, sentence = reference_module.compare_with_reference(run)
    assert table["reproduced"].all() and len(table) > 50
    assert f"{len(table)} of {len(table)}" in sentence
    accuracy = pd.read_csv(kept / "tables" / "accuracy.csv")
    chosen = (accuracy["strategy"] == "thesis") & (accuracy["split"] == "test")
    accuracy.loc[chosen, "acc_2500km"] += 2.0
    accuracy.to_csv(kept / "tables" / "accuracy.csv", index=False)
    table, sentence = reference_module.compare_with_reference(run)
    missed = table[~table["reproduced"]]
    assert missed["strategy"].tolist() == ["thesis", "thesis-infonce"]
    assert set(missed["split"] + missed["figure"]) == {"testacc_2500km"}
    assert "NO" in reference_module.format_comparison(table, sentence)


def test_a_run_with_other_settings_is_not_compared_and_ends_well(reference, capsys):
    pipeline._say_comparison(Run.open("smoke", str(reference[0].folder), ["training.epochs=9"]))
    assert "Not compared with the reference run: other settings (training.epochs)" in capsys.readouterr().out


def test_of_a_progress_bar_an_executed_notebook_keeps_nothing_and_of_text_everything(tmp_path):
    cell = nbformat.v4.new_code_cell("train()", id="cell")
    bar = ["\rtraining:  50%|#    |", "\rtraining: 100%|#####|", "\r                     \r"]
    said = [*bar, "made    training in 3 s\n", "done\n"]
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in said]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "executed.ipynb")
    pages.tidy(tmp_path / "executed.ipynb")
    (output,) = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[0].outputs
    assert output.text == "made    training in 3 s\ndone\n"


def test_a_rendered_notebook_fetches_nothing_and_shows_its_formulas(smoke):
    folder, _, _ = smoke
    found = sorted((folder / "notebooks").glob("*.html"))
    assert len(found) == len(pipeline.notebooks())
    for path in found:
        page = path.read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page), path.name
    assert "<math" in found[2].read_text()


def test_formulas_become_mathml_and_code_stays_code():
    shown = pages.with_mathml("costs $x_i$ and `$HOME`:\n\n$$y = \\frac{1}{2}$$")
    assert shown.count("<math") == 2 and "`$HOME`" in shown and "<mfrac>" in shown


def test_a_checkpoint_that_cannot_be_had_is_found_before_photos_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pipeline, "_execute_all", lambda *_: pytest.fail("went on"))
    given = [f"dataset.root={tmp_path}/photos", "backbone.name=nobody/nothing"]
    options = [part for one in given for part in ("--set", one)]
    assert pipeline.main(
        ["--profile", "osv5m_small", "--device", "cpu", "--run", f"{tmp_path}/run", *options]
    )
    assert "backbone 'nobody/nothing': neither a checkpoint folder nor to be had" in capsys.readouterr().err

"""What a run says: one line at a terminal, two a notebook elsewhere, and a file with the rest."""

import io

import pytest

from lib import terminal
from lib.terminal import Listener, Progress

LINES = [f"made    training-decayed_seed{seed} in 3.0 s" for seed in range(5)] + ["reused  features (made before)"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_keeps_whole_lines_and_nothing_of_progress_bars(tmp_path):
    listener = Listener(tmp_path / "logs" / "02.log")
    for piece in ("\rdecayed, seed 0:  50%|##  |", "\rdecayed, seed 0: 100%|####|", "\r            \r", "made    trai", "ning in 3 s\nlast words"):
        listener.write(piece)
    listener.close()
    assert [line[10:] for line in (tmp_path / "logs" / "02.log").read_text().splitlines()] == ["made    training in 3 s", "last words"]


def test_the_stage_is_what_the_latest_progress_bar_or_stage_says(tmp_path):
    listener = Listener(tmp_path / "02.log")
    seen = []
    for piece in ("made    semivariogram in 3 s\n", "some words\n", "\rextracting features:  35%|###   | 7/20", "again   features: other code\n"):
        listener.write(piece)
        seen.append(listener.stage)
    listener.close()
    assert seen == ["semivariogram", "semivariogram", "extracting features 35 %", "features"]


def run_through(stream, tmp_path, expected, is_of_here=True, names=("01_a", "02_b")):
    with Progress(names, expected, is_of_here, tmp_path, stream) as progress:
        for name in names:
            progress.begin(name).write("\rfitting:  10%|#")
            last = progress.line()
            progress.end(LINES)
    return progress, last


def test_without_a_terminal_a_notebook_is_two_plain_lines(tmp_path):
    stream = io.StringIO()
    run_through(stream, tmp_path, {})
    said = stream.getvalue()
    assert "\r" not in said and "\033" not in said
    assert said.splitlines() == [
        "[1/2] 01_a …", f"      {terminal.summary(LINES)}; 0 s", "[2/2] 02_b …", f"      {terminal.summary(LINES)}; 0 s",
    ]  # fmt: skip


def test_at_a_terminal_one_line_is_drawn_again_and_cut_to_its_width(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "PAUSE_S", 0.01)
    monkeypatch.setenv("COLUMNS", "50")
    stream = Terminal()
    with Progress(["01_a"], {}, True, tmp_path, stream) as progress:
        listener = progress.begin("01_a")
        for share in (10, 20, 30):
            listener.write(f"\rfitting:  {share}%|#")
            while f"fitting {share} %" not in stream.getvalue():
                pass
        progress.end(LINES)
    drawn = [piece.removeprefix("\033[K") for piece in stream.getvalue().split("\r")]
    assert any("[1/1] 01_a" in piece for piece in drawn)
    assert all(len(piece) < 50 for piece in drawn if piece.startswith("|"))
    assert stream.getvalue().count("\n") == 1


def test_the_bar_says_notebook_stage_and_time_left(tmp_path):
    progress, last = run_through(io.StringIO(), tmp_path, {"01_a": 100.0, "02_b": 300.0})
    assert "[2/2] 02_b: fitting 10 %" in last and "about 5 min left" in last
    assert progress.share() == 1.0 and progress.seconds_left() == 0.0


def test_another_machines_times_are_proportions(tmp_path):
    with Progress(["01_a", "02_b"], {"01_a": 100.0, "02_b": 300.0}, False, tmp_path, io.StringIO()) as progress:
        progress.begin("01_a")
        assert progress.seconds_left() is None
        progress.end([])
        progress.finished["01_a"] = 50.0  # twice as fast here
        assert progress.seconds_left() == pytest.approx(150.0)


def test_where_a_time_is_missing_none_is_invented(tmp_path):
    _, last = run_through(io.StringIO(), tmp_path, {"01_a": 100.0})
    assert "left" not in last


def test_many_stages_are_counted_and_some_named():
    assert terminal.summary(LINES) == "made 5 (training-decayed_seed0, training-decayed_seed1, training-decayed_seed2, …), reused 1"
    assert terminal.summary([]) == "drawn"


def test_what_was_left_out_is_said_in_full(tmp_path):
    stream = io.StringIO()
    with Progress(["01_a"], {}, True, tmp_path, stream) as progress:
        progress.begin("01_a")
        progress.end(["left out 3 photos"])
    assert "      left out 3 photos" in stream.getvalue().splitlines()

"""Stages side by side: means or single people with their intervals, and published scores beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks import print_comparison, read_reference
from contracts import DataError, Score

SCORE = Score("two_way", 0.75, 0.6, 0.85, chance=0.5, subject="eeg", gallery="eeg to image (40)", similarity="cosine")


def test_a_single_person_is_shown_with_an_interval_and_a_mean_without(capsys: pytest.CaptureFixture[str]) -> None:
    people = [Score("two_way", value, 0.1, 0.9, subject=name) for name, value in (("01", 0.5), ("02", 0.7))]
    mean = Score("two_way", 0.6, subject="mean")
    rows = [("a", "one", SCORE), *(("a", "many", score) for score in (*people, mean))]
    print_comparison(rows, title="stages")
    printed = capsys.readouterr().out
    assert "0.750 (0.600 .. 0.850)" in printed
    [line] = [line for line in printed.splitlines() if "many" in line]
    assert "mean" in line
    assert "0.600" in line
    assert ".." not in line
    assert "ahead" not in printed


def test_published_scores_stand_by_name_and_gallery_whatever_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "paper.yaml"
    file.write_text("name: '[red]paper'\nsource: there [4]\nscores: {eeg to image: {two_way: .8, top_1: 1}}\n")
    reference = read_reference(file)
    assert reference.values == {("eeg to image", "two_way"): 0.8, ("eeg to image", "top_1"): 1.0}
    regression = Score("two_way", 0.7, subject="eeg", gallery="eeg to image by regression (40)", similarity="cosine")
    signals = Score("pearson_mean", 0.3, subject="eeg", gallery="image to eeg by regression")
    rows = [("a", "one", SCORE), ("b", "one", SCORE), ("a", "one", regression), ("a", "one", signals)]
    print_comparison(rows, title="stages", reference=reference)
    printed = capsys.readouterr().out
    lines = {line.split("│")[4].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert "0.800" in lines["eeg to image (40) cosine"]
    assert "tie" in lines["eeg to image (40) cosine"]
    for gallery in ("eeg to image by regression (40) cosine", "image to eeg by regression"):
        assert "0.800" not in lines[gallery]
    assert "[red]paper: there [4]" in printed
    assert printed.count("[red]paper") == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.yaml"):
        read_reference(tmp_path / "nothing.yaml")

"""``neuroalign report``: where it writes, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
from filelock import FileLock

from callbacks import Pictures, write_scores
from callbacks.picture_record import save_pictures
from experiments.report import command
from tests.experiments.launching import call
from tests.experiments.report.test_stimuli import random_part, run_folder

RUNS = "runs/phantom/sub-{}/ridge_direct/demo"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, and the section of stimuli alone: others are tested by themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "SECTIONS", ("stimuli", "conversion"))
    for person in ("01", "02"):
        run_folder(tmp_path, random_part(1), None, RUNS.format(person))
    return tmp_path


def report(capfd: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    out, error = call(["report", *words], capfd, status=status)
    assert "Traceback" not in error
    return error if status else out


def test_one_run_has_its_report_in_its_folder(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = report(capfd, f'--runs=["{RUNS.format("01")}"]')
    file = runs / RUNS.format("01") / "report.html"
    assert f"report of 1 run: {RUNS.format('01')}/report.html (0.0 MB)" in said
    text = file.read_text()
    assert "<h1>phantom sub-01 ridge_direct demo</h1>" in text
    assert "1 run, written on" in text
    # a section without anything to show is left out
    assert text.count("<section") == 1


def test_several_runs_have_it_in_the_folder_they_share(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # by different patterns, one of them absolute
    said = report(capfd, f'--runs=["runs/phantom/*1/ridge_direct/demo", "{runs}/runs/phantom/sub-02"]')
    assert "report of 2 runs: runs/phantom/report.html" in said
    assert "<h1>ridge_direct on phantom</h1>" in (runs / "runs/phantom/report.html").read_text()


def test_file_and_title_can_be_chosen(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report(capfd, '--runs=["runs"]', "--to=made/for/this.html", "--title=Mine & <b>yours</b>")
    assert "<h1>Mine &amp; &lt;b&gt;yours&lt;/b&gt;</h1>" in (runs / "made/for/this.html").read_text()
    assert not list(runs.rglob("*.partial"))


def test_reports_of_one_time_wait_for_each_other(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SECTIONS", ())
    target = runs / "made/report.html"
    target.parent.mkdir()
    writing = Thread(target=command.write_report, args=(["runs"], str(target)))
    with FileLock(target.with_name(".report.html.lock")):
        writing.start()
        writing.join(1.0)
        assert writing.is_alive()
        assert not target.exists()
    writing.join(20.0)
    assert target.read_text().endswith("</html>")


def test_without_a_tested_run_there_is_nothing_to_report(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    for pattern in ("empty", "runs/nowhere/*"):
        assert f"no tested run in {pattern}" in report(capfd, f'--runs=["{pattern}"]', status=2)
    assert not list(runs.rglob("*.html"))


@pytest.mark.parametrize("name", ["outputs.safetensors", "pictures.safetensors", "scores.json"])
def test_a_damaged_file_is_one_error_and_the_old_report_stays(
    runs: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    file = runs / RUNS.format("02") / name
    write_scores(file.parent / "scores.json", [])
    save_pictures(file.parent / "pictures.safetensors", Pictures({0: "a"}))
    report(capfd, '--runs=["runs"]')
    before = (runs / "runs/phantom/report.html").read_bytes()
    file.write_bytes(file.read_bytes()[:-1] + b"{")
    if name.endswith("safetensors"):
        file.write_bytes(file.read_bytes()[:-10])
    said = report(capfd, '--runs=["runs"]', status=2)
    assert f"cannot read {RUNS.format('02')}/{name}" in said
    assert said.count("\n") == 1
    assert (runs / "runs/phantom/report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("scores.json", "a report is an HTML file, found --to=scores.json"),
        ("folder.html", "folder.html is a folder"),
        ("file/report.html", "file takes no files"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_work(
    runs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str, message: str
) -> None:
    (runs / "folder.html").mkdir()
    (runs / "file").write_text("kept")
    monkeypatch.setattr(command, "SECTIONS", ("no_such_module",))
    said = report(capfd, '--runs=["runs"]', f"--to={to}", status=2)
    assert message in said
    assert "--to" in said
    assert (runs / "file").read_text() == "kept"
    assert not (runs / "scores.json").exists()


def test_sections_are_modules_of_the_report() -> None:
    folder = Path(command.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in command.SECTIONS)
    assert len(set(command.SECTIONS)) == 8

"""A fit's progress in a file."""

import io

from harness.fitting.progress import progress
from tests.conftest import execute


def test_a_file_gets_whole_lines_and_nothing_of_a_short_fit(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with progress(3, "coop toy") as bar:
        bar.update()
    assert file.getvalue() == ""
    with progress(3, "coop toy", interval=0) as bar:
        bar.update()
        bar.update()
    lines = file.getvalue().split("\n")
    assert "coop toy: step 2 of 3" in file.getvalue()
    assert lines.pop() == ""
    assert all(line.startswith("coop toy: step") for line in lines)
    assert "\r" not in file.getvalue()


def test_a_short_fit_writes_nothing_into_a_file(make_run, capfd):
    execute(make_run("adapter", max_steps=6))
    assert "step" not in capfd.readouterr().err

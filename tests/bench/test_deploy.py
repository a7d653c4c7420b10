"""What exported fits cost is measured in processes of their own."""

import pytest

from harness.bench import deploy
from harness.bench.process import Ended


def printed(output):
    """A process that ended."""
    return Ended(output, 1.0, 1.0, 0)


def test_the_best_process_counts_and_the_size_is_that_of_all_files(monkeypatch, tmp_path):
    answers = iter([[3.0, 50.0], [2.0, 40.0]])
    monkeypatch.setattr(deploy, "called", lambda *_, **__: printed(f"noise\n{next(answers)}\n"))
    (tmp_path / "model.pt2").write_bytes(bytes(1_500_000))
    (tmp_path / "classes.json").write_bytes(bytes(20_000))
    row = deploy._timed("pt2", tmp_path, 2)
    assert row == {"form": "pt2", "images_a_second": 50.0, "first_seconds": 2.0, "bytes": 1_520_000}
    shown = deploy.table(
        {
            "repeats": 2,
            "batch": 64,
            "processors": 2,
            "load": 5.0,
            "rows": [{"method": "lora", **row}],
        }
    )
    assert [cell.strip() for cell in shown.splitlines()[4].split("|")[1:-1]] == [
        "lora", "pt2", "50", "2.00", "1.520"
    ]  # fmt: skip


@pytest.mark.parametrize("form", deploy.LOAD)
def test_what_is_measured_can_be_read_by_python(form):
    compile(deploy.LOAD[form] + deploy.TIMED, form, "exec")

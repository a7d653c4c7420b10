"""The made-up records of the benchmark are records, and are measured."""

from harness.bench.records import table, written
from harness.leaderboards.leaderboard import Leaderboard
from harness.records.store import read_all


def test_the_made_up_records_have_intervals(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.certainty.statistics.DRAWS", 100)
    assert written(tmp_path / "runs", 2, 1, 2) == 20
    text = Leaderboard(read_all([tmp_path / "runs"])).text()
    assert text.count("95%: interval for other images and seeds") == 5
    assert "No interval" not in text


def test_the_table_says_what_a_cold_and_a_warm_index_take():
    rows = [{"index": name, "seconds": 1.25, "processor_seconds": 1.0, "bytes": 2**30}
            for name in ("cold", "warm")]  # fmt: skip
    said = table({"records": 100_000, "images": 200, "tables": 5, "rows": rows, "load": 0.5,
                  "processors": 2})  # fmt: skip
    assert "100,000 made-up records" in said
    assert "1.2 |" in said

"""`published` and `leaderboard --published` as a reader meets them."""

import json

import pytest

from harness.cli.commands import main
from harness.literature import published
from harness.records.store import Store
from tests.literature.test_published import record

GOOD = "method,dataset,base,new,hm\nours,dtd,80.00,60.00,68.57\n"
BAD = "method,dataset,base,new,hm\nours,dtd,80.00,60.00,69.57\n"


@pytest.fixture
def table(tmp_path):
    return tmp_path / "table.csv"


def printed(capsys, *arguments):
    code = main(list(map(str, arguments)))
    return code, capsys.readouterr().out


def test_the_sources_are_listed_with_their_addresses(capsys):
    code, text = printed(capsys, "published")
    assert code == 0
    for name, source in published.sources().items():
        assert name in text
        assert all(url in text for url in source.urls)


def test_the_sources_are_listed_as_json(capsys):
    _, text = printed(capsys, "published", "--json")
    of = {each["source"]: each for each in json.loads(text)}
    assert of["dra"]["numbers"] == 559
    assert of["dra"]["urls"] == ["https://arxiv.org/abs/2507.05668"]


def test_a_paper_s_number_is_shown(capsys):
    _, text = printed(capsys, "published", "show", "dra,mma", "--datasets", "ucf101")
    assert "82.20*" in text
    assert "HM of base 86.23 and new 80.03" in text


def test_numbers_are_shown_as_json(capsys):
    _, text = printed(capsys, "published", "show", "dra,mma", "--task", "base2new", "--json")
    (each,) = json.loads(text)
    (row,) = each["rows"]
    assert row["numbers"]["new"]["printed"] == pytest.approx(0.768)
    assert row["numbers"]["new"]["text"] == "76.80"


@pytest.mark.parametrize(
    "wrong", [["nothing"], ["coop", "--task", "fewshot"], ["coop", "--datasets", "pets"]], ids=str
)
def test_what_is_not_printed_is_refused(wrong, capsys):
    assert main(["published", "show", *wrong]) == 2
    assert "unknown" in capsys.readouterr().err


def test_a_table_that_adds_up_is_good(table, capsys):
    table.write_text(GOOD)
    code, text = printed(capsys, "published", "check", table)
    assert code == 0
    assert "All add up" in text


def test_a_table_that_does_not_add_up_is_named_with_its_line(table, capsys):
    table.write_text(BAD)
    code, text = printed(capsys, "published", "check", table)
    assert code == 1
    (line,) = [line for line in text.splitlines() if line.startswith("2 ")]
    assert "hm 69.57" in line
    assert "68.571 ± 0.010" in line


def test_a_cell_that_cannot_be_read_is_no_success(table, capsys):
    table.write_text(GOOD + "theirs,dtd,8o,60.00,68.57\n")
    assert printed(capsys, "published", "check", table)[0] == 1


def test_misfits_are_json(table, capsys):
    table.write_text(BAD)
    code, text = printed(capsys, "published", "check", "--json", table)
    assert code == 1
    (file,) = json.loads(text)
    (misfit,) = file["misfits"]
    assert (misfit["line"], misfit["printed"]) == (2, 69.57)
    assert misfit["follows"] == pytest.approx(2 * 80 * 60 / 140)


def test_all_sources_are_checked_without_a_name(capsys):
    code, text = printed(capsys, "published", "check", "--json")
    files = json.loads(text)
    assert code == 1
    assert len(files) == len(published.sources())
    number = sum(len(file["misfits"]) for file in files)
    assert f"lists {number} misfits" in (published.folder() / "README.md").read_text("utf-8")


def test_a_source_is_checked_by_its_name(capsys):
    assert printed(capsys, "published", "check", "rada")[0] == 0


def test_a_file_that_is_not_there_is_refused(capsys):
    assert main(["published", "check", "nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


def test_escapes_of_a_table_do_not_reach_the_terminal(table, capsys):
    table.write_text(BAD.replace("ours", "\x1b[31mours"))
    _, text = printed(capsys, "published", "check", table)
    assert "\x1b" not in text
    assert r"\x1b[31mours" in text


def test_the_leaderboard_prints_published_numbers_beside_ours(tmp_path, capsys):
    Store(tmp_path).open().write(record("mma", "ucf101"), {})
    _, text = printed(capsys, "leaderboard", "--results", tmp_path, "--published", "dra")
    assert "Printed beside measured: base2new" in text
    assert "| mma" in text
    assert "82.20*" in text


def test_the_leaderboard_of_the_embedded_backbone_says_that_nothing_can_be_compared(
    tmp_path, capsys
):
    Store(tmp_path).open().write(record(backbone="emoji-mini"), {})
    code, text = printed(capsys, "leaderboard", "--results", tmp_path, "--published")
    assert code == 0
    assert "nothing to compare" in text

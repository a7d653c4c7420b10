"""Tables of any text are read, or refused in a sentence."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.literature.arithmetic import check
from harness.literature.printed import read, read_file

WIDE = "method,dataset,base,new,hm\n"


def misfits(text):
    """Of each the dataset, the evaluation, and what follows."""
    found = check(read(text, "t").rows).misfits
    return [(each.dataset, each.evaluation, round(each.follows, 2)) for each in found]


def test_both_forms_of_a_table_are_read_alike():
    wide = read(WIDE + "coop,dtd,80.00,60.00,68.57\n", "t")
    long = read(
        "method,dataset,evaluation,value\ncoop,dtd,base,80.00\ncoop,dtd,new,60.00\n"
        "coop,dtd,HM,68.57\n",
        "t",
    )
    numbers = [{key: n.text for key, n in table.rows[0].numbers.items()} for table in (wide, long)]
    assert numbers[0] == numbers[1] == {
        ("dtd", "base"): "80.00", ("dtd", "new"): "60.00", ("dtd", "hm"): "68.57",
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["83.08", "83.08%", "**83.08**", "83.08 ± 0.31", "83,08"])
def test_a_number_is_read_as_tables_print_it(cell):
    (row,) = read(f'method,dataset,accuracy\ncoop,dtd,"{cell}"\n', "t").rows
    number = row.numbers["dtd", "accuracy"]
    assert (number.value, number.decimals) == (83.08, 2)


@pytest.mark.parametrize("cell", ["91..22", "1e3", "inf", "٣٤", "-3", "101", "9" * 5000])
def test_a_cell_that_is_no_percentage_is_named_with_its_line(cell):
    table = read(f"{WIDE}a,x,80.00,60.00,68.57\nb,y,{cell},60.00,68.57\n", "t")
    (fault,) = table.faults
    assert (fault.line, fault.row) == (3, "b, y")
    assert len(check(table.rows).misfits) == 0


def test_an_absent_cell_is_no_number_and_no_fault():
    table = read(f"{WIDE}a,x,80.00,–,\n", "t")
    assert not table.faults
    assert list(table.rows[0].numbers) == [("x", "base")]


def test_a_second_number_for_a_cell_is_a_fault_and_the_first_counts():
    table = read(f"{WIDE}a,x,80.00,60.00,68.57\na,x,10.00,60.00,68.57\n", "t")
    assert {each.line for each in table.faults} == {3}
    assert not check(table.rows).misfits


def test_rows_of_a_method_are_told_apart_by_their_notes():
    text = "method,dataset,base,new,hm,note\n"
    table = read(f"{text}a,x,80.00,60.00,68.57,K=2\na,x,90.00,60.00,72.00,K=3\n", "t")
    assert not table.faults
    assert [row.name for row in table.rows] == ["a (K=2)", "a (K=3)"]


def test_a_line_with_too_few_or_too_many_cells_is_a_fault():
    table = read(f"{WIDE}a,x,80,60\nb,x,80,60,68.6,7\n", "t")
    assert [each.line for each in table.faults] == [2, 3]
    assert not table.rows


def test_other_columns_and_evaluations_are_named():
    assert read("method,dataset,base,seed\na,x,80,1\n", "t").ignored == ["column seed"]
    table = read("method,dataset,evaluation,value\na,x,H,80\n", "t")
    assert table.ignored == ["evaluation h"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_ends_of_lines_make_no_difference(separator, end):
    lines = ["method,dataset,base,new,hm", "a,x,80.00,60.00,61.00"]
    text = end.join(line.replace(",", separator) for line in lines)
    assert misfits(text) == [("x", "hm", 68.57)]


TABLE = st.text(alphabet='methodasbw,;\t"\n\r.0189±-%\0é', max_size=80).map(lambda t: WIDE + t)


@settings(max_examples=60)
@given(st.text(max_size=40) | TABLE)
def test_any_text_is_read_or_refused_in_a_sentence(text):
    with suppress(HarnessError):
        table = read(text, "t")
        assert len(check(table.rows).misfits) <= text.count(",") + text.count("\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "first line of column names"),
        (b"a,b\n1,2\n", "first line of column names"),
        (b"method,dataset,base,base\n", "the column base twice"),
        ("méthode".encode("latin-1"), "not UTF-8"),
        (WIDE.encode() + b"a" * 200_000, "no csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(content, says, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=says) as refused:
        read_file(path)
    assert str(path) in str(refused.value)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(HarnessError, match="cannot be read"):
        read_file(tmp_path)

"""What follows from printed numbers: HMs and averages, up to rounding and no further."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.literature.arithmetic import check
from harness.literature.printed import read
from harness.records.entry import harmonic_mean

WIDE = "method,dataset,base,new,hm\n"
PERCENT = st.floats(0.1, 100)


def checked(text):
    return check(read(text, "t").rows)


@given(PERCENT, PERCENT, st.integers(0, 3))
def test_an_hm_of_unrounded_numbers_is_never_a_misfit(base, new, decimals):
    printed = ",".join(f"{each:.{decimals}f}" for each in (base, new, harmonic_mean(base, new)))
    found = checked(f"{WIDE}a,x,{printed}\n")
    assert found.harmonic == 1
    assert not found.misfits


@given(st.lists(PERCENT, min_size=2, max_size=11), st.integers(0, 3))
def test_an_average_of_unrounded_numbers_is_never_a_misfit(values, decimals):
    each = {f"d{i}": value for i, value in enumerate(values)}
    each["average"] = sum(values) / len(values)
    lines = "".join(f"a,{name},{value:.{decimals}f}\n" for name, value in each.items())
    found = checked(f"method,dataset,accuracy\n{lines}")
    assert found.averages == 1
    assert not found.misfits


@pytest.mark.parametrize(("printed", "fits"), [("68.6", True), ("68.5", False), ("68.58", True),
                                               ("68.60", False)])  # fmt: skip
def test_the_tolerance_follows_from_the_printed_decimals(printed, fits):
    found = checked(f"{WIDE}a,x,80.00,60.00,{printed}\n")  # 68.571, at least 68.566
    assert (not found.misfits) is fits


def test_a_misfit_says_where_it_is_and_what_follows():
    (found,) = checked(f"{WIDE}a,x,80.00,60.00,68.57\nb,x,80.00,60.00,70.00\n").misfits
    assert found.printed.line == 3
    assert found.row.method == "b"
    assert found.follows == pytest.approx(harmonic_mean(80, 60))
    assert found.tolerance == pytest.approx(0.01, rel=0.02)
    assert found.why == "HM of base 80.00 and new 60.00"


def test_the_hm_of_an_average_is_that_of_the_averages_and_a_mean_of_hms_is_named():
    datasets = "a,x,80.00,60.00,68.57\na,y,90.00,50.00,64.29\n"
    assert not checked(f"{WIDE}{datasets}a,average,85.00,55.00,66.79\n").misfits
    (found,) = checked(f"{WIDE}{datasets}a,average,85.00,55.00,66.43\n").misfits
    assert found.why.endswith("66.43 is the mean of the 2 printed HMs instead")


def test_the_source_of_a_transfer_is_in_no_average():
    lines = "a,{task},imagenet,70.0\na,{task},dtd,40.0\na,{task},food101,90.0\n"
    text = f"method,task,dataset,accuracy\n{lines}a,{{task}},average,{{average}}\n"
    assert not checked(text.format(task="cross_dataset", average="65.0")).misfits
    capital = text.replace("imagenet", "ImageNet")
    assert not checked(capital.format(task="cross_dataset", average="65.0")).misfits
    assert checked(text.format(task="cross_dataset", average="66.7")).misfits
    assert not checked(text.format(task="few_shot", average="66.7")).misfits
    assert checked(text.format(task="few_shot", average="65.0")).misfits
    assert not checked(text.format(task="", average="65.0")).misfits


def test_an_average_is_not_compared_where_a_row_lacks_datasets_of_its_table():
    text = "method,dataset,accuracy\na,x,50\na,y,60\na,average,55\nb,x,50\nb,average,80\n"
    found = checked(text)
    assert found.averages == 1
    assert not found.misfits
    assert found.unchecked == ["b, accuracy: lacks 1 datasets"]


def test_tables_of_one_file_are_checked_each_by_itself():
    text = "table,method,dataset,accuracy\n1,a,x,50\n1,a,y,60\n1,a,average,55\n2,a,average,80\n"
    assert not checked(text).misfits

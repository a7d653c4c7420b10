"""Cards of methods: each has one, and what code can tell of it is what the code tells."""

import inspect
import re

import pytest

from harness.cli.commands import main
from harness.fitting.model import Model
from harness.literature.cards import RELEASED, averages, card, cards
from tests.conftest import METHODS, PLUGINS, ROOT
from tests.methods.test_contract import FIT, PARAMETERS, build, fitting

NEEDS = {
    "uses_val": "val images",
    "class_texts": "texts of each class (--class-texts)",
    "only_fitted_classes": "the fitted classes: scores no others",
    "requires": "the extra [peft]",
}


def test_every_method_has_a_card_and_every_card_a_method():
    assert {*cards()} == {*METHODS, "peft"}
    assert card("peft-vera") == card("peft")
    assert card("a-users-own") is None


@pytest.mark.parametrize("name", METHODS)
def test_a_card_says_what_the_code_says(name, exact):
    found, cls = card(name), PLUGINS.plugins["methods"][name].cls
    assert int(found.fixed) + 3 * int(found.per_class) == PARAMETERS[name]
    assert found.needs == "; ".join(said for flag, said in NEEDS.items() if getattr(cls, flag))
    document = inspect.getdoc(cls)
    assert found.url in document
    if "arxiv.org/abs/" in found.url:
        assert found.year == "20" + re.search(r"abs/(\d\d)", found.url)[1]
    model = Model(exact, build(name, **fitting(name)), FIT, seed=1)
    run = [each.name for each in (exact.image, exact.text) if model.cut(each) is not None]
    assert found.towers == (" and ".join(run) or "none")
    assert bool(found.trained_of_clip) == bool(model.unfrozen)


@pytest.mark.parametrize("name", [*METHODS, "peft"])
def test_a_card_claims_no_check_that_is_not_there(name):
    found = card(name)
    folder = ROOT / "tests" / ("" if found.equation == "test_class_texts.py" else "methods")
    words = (folder / found.equation).read_text(encoding="utf-8").lower()
    family = PLUGINS.plugins["methods"][name].family if name in METHODS else name
    assert re.search(rf"(?<![a-z]){family}(?![a-z])", words.replace("_", " ").replace(
        family.replace("_", " "), family))  # fmt: skip
    assert found.released in RELEASED
    none = "no code is public" in inspect.getdoc(PLUGINS.plugins["methods"][name].cls)
    assert not (none and found.released != "none public")


def test_the_methods_that_were_run_beside_their_authors_code_are_the_thirteen_of_then():
    compared = {name for name, each in cards().items() if each.released == "compared"}
    assert compared == {
        "coop", "cocoop", "maple", "vpt", "mma", "kgcoop", "tcp", "clip_adapter", "lora", "lfa",
        "tip_adapter", "tip_adapter_f", "prograd",
    }  # fmt: skip


def test_published_averages_are_printed_with_their_sources():
    assert averages("gda")[:2] == [
        "base2new, 16 shots: base 83.96, new 74.53, hm 78.72 "
        "(clip_svd README: hm: of the printed base and new: 78.96)",
        "few_shot, 1 shot: accuracy 69.39 (clip_svd README few-shot: mean of the 11 datasets)",
    ]
    (again,) = [each for each in averages("coop") if "81.50" in each]
    assert "authors' own re-run" in again
    assert averages("a-users-own") == []


def test_show_prints_the_card_and_none_of_a_users_own_method(capsys, tmp_path):
    assert main(["show", "taskres"]) == 0
    said = capsys.readouterr().out
    for line in ("family: head", "trained: 512 C numbers on ViT-B/16", "frozen: all of CLIP",
                 "training: trained on kept features", "needs: the fitted classes",
                 "verified: equation test (test_equations_heads.py); not run beside"):  # fmt: skip
        assert f"\n{line}" in said
    own = tmp_path / "mine.py"
    own.write_text(
        "from dataclasses import dataclass\nfrom harness.method import Method\n\n\n"
        '@dataclass(frozen=True, kw_only=True)\nclass Mine(Method):\n    """Mine.\n\n'
        '    Source: own.\n    Differs: nothing known.\n    """\n'
    )
    assert main(["show", "mine", "--plugin", str(own)]) == 0
    assert "verified:" not in capsys.readouterr().out

"""Names, wildcards, collisions, broken plugins and plugins from outside."""

import sys
import textwrap

import pytest

from harness import registry
from harness.errors import HarnessError
from tests.conftest import METHODS

METHOD = """
from dataclasses import dataclass
from harness.method import Method

@dataclass(frozen=True, kw_only=True)
class {name}(Method):
    \"\"\"A method.

    Source: here.
    Differs: nothing known.
    \"\"\"
"""


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return str(path)


def names(found):
    return [plugin.name for plugin in found]


def test_every_file_registers_under_its_own_name(plugins):
    for kind in ("methods", "tasks"):
        for name, plugin in plugins.plugins[kind].items():
            stem = plugin.origin.rpartition("/")[2].removesuffix(".py")
            assert plugin.family == stem
            assert name == stem or name in plugin.cls.variants


def test_lists_and_wildcards_select_in_order_and_once(plugins):
    assert names(plugins.find("methods", "mma, dra-t,dra-*,mma"))[:3] == ["mma", "dra-t", "dra-v"]
    assert sorted(names(plugins.find("methods", "*"))) == METHODS


def test_an_unknown_name_gets_a_suggestion_and_the_list(plugins):
    with pytest.raises(HarnessError, match=r"unknown method 'adaptr'\. Did you mean 'adapter'"):
        plugins.find("methods", "adaptr")


def named_only(tmp_path, requires=""):
    """A registry with a method `shy`, its variants shy-a and shy-b, and what it requires."""
    text = (
        METHOD.format(name="Shy")
        + f"""
    by_name_only = True
    requires = {requires!r}
    variants = {{"shy-a": {{"lr": 0.1}}, "shy-b": {{}}}}
"""
    )
    return registry.load([write(tmp_path / "shy.py", text)])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("shy", ["shy"]),
        ("shy-b", ["shy-b"]),
        ("shy-*", ["shy-a", "shy-b"]),
        ("shy*", ["shy", "shy-a", "shy-b"]),
        ("zero*,shy-?", ["zero_shot", "shy-a", "shy-b"]),
    ],
)
def test_a_method_that_is_selected_by_name_only_is_found_by_its_name(tmp_path, asked, found):
    assert names(named_only(tmp_path).find("methods", asked)) == found


@pytest.mark.parametrize("asked", ["*", "*-a,dra", "?*,dra"])
def test_no_other_wildcard_selects_a_method_by_name_only(tmp_path, asked):
    if asked == "*-a,dra":
        with pytest.raises(HarnessError, match=r"unknown method '\*-a'"):
            named_only(tmp_path).find("methods", asked)
    else:
        assert not {"shy", "shy-a"} & set(names(named_only(tmp_path).find("methods", asked)))


@pytest.mark.parametrize("asked", ["shy", "shy-a", "shy-*", "zero_shot,shy"])
def test_a_method_whose_package_is_missing_says_what_to_install(tmp_path, asked):
    with pytest.raises(HarnessError, match=r"needs the package .*'vlm-peft-harness\[no_such\]'"):
        named_only(tmp_path, requires="no_such").find("methods", asked)


def test_a_class_or_object_whose_package_is_missing_says_what_to_install(tmp_path):
    cls = named_only(tmp_path, requires="no_such").plugins["methods"]["shy"].cls
    for given in (cls, cls()):
        with pytest.raises(HarnessError, match="needs the package no_such"):
            registry.load().find("methods", [given])


def test_a_method_whose_package_is_there_is_found(tmp_path):
    assert names(named_only(tmp_path, requires="torch").find("methods", "shy")) == ["shy"]


def test_a_file_outside_the_repository_registers(tmp_path):
    path = write(tmp_path / "my_method.py", METHOD.format(name="Mine"))
    assert names(registry.load([path]).find("methods", "my_method")) == ["my_method"]


def test_a_module_on_the_path_registers(tmp_path, monkeypatch):
    write(tmp_path / "their_method.py", METHOD.format(name="Theirs"))
    monkeypatch.syspath_prepend(tmp_path)
    assert names(registry.load(["their_method"]).find("methods", "their_method"))
    sys.modules.pop("their_method")


def test_a_plugin_called_like_a_standard_module_shadows_nothing(tmp_path):
    import json

    registry.load([write(tmp_path / "json.py", METHOD.format(name="Mine"))])
    assert sys.modules["json"] is json


def test_a_collision_names_both(tmp_path):
    path = write(tmp_path / "dra.py", METHOD.format(name="Mine"))
    with pytest.raises(HarnessError, match=r"methods/dra\.py and .*dra\.py"):
        registry.load([path])


def test_a_variant_that_collides_names_both(tmp_path):
    text = METHOD.format(name="Mine") + '    variants = {"dra-t": {}}\n'
    with pytest.raises(HarnessError, match="dra-t"):
        registry.load([write(tmp_path / "mine.py", text)])


def test_a_broken_file_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    from harness import methods

    write(tmp_path / "broken_method.py", "import a_package_that_is_not_there\n")
    write(tmp_path / "good_method.py", METHOD.format(name="Good"))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    loaded = registry.load()
    assert "a_package_that_is_not_there" in loaded.broken["harness.methods.broken_method"]
    assert {"good_method", "dra"} <= set(loaded.plugins["methods"])
    with pytest.raises(HarnessError, match="a_package_that_is_not_there"):
        loaded.find("methods", "broken_method")


def test_entry_points_register(tmp_path, monkeypatch):
    write(tmp_path / "entry_method.py", METHOD.format(name="Entry"))
    information = tmp_path / "entry-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[harness.methods]\nfrom_entry = entry_method\nclass_entry = entry_method:Entry\n"
        "gone = no_such_module\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = registry.load()
    assert {"from_entry", "class_entry"} <= set(loaded.plugins["methods"])
    assert any("no_such_module" in reason for reason in loaded.broken.values())
    sys.modules.pop("entry_method")


@pytest.mark.parametrize("reference", ["no_such_module", "no_such_file.py"])
def test_a_plugin_that_is_not_there_is_an_error(reference):
    with pytest.raises(HarnessError, match="failed to import"):
        registry.load([reference])


def test_a_plugin_without_a_class_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="defines no Method"):
        registry.load([write(tmp_path / "empty.py", "x = 1\n")])


def test_files_that_define_no_method_or_two_are_left_out_with_the_reason(tmp_path, monkeypatch):
    from harness import methods

    write(tmp_path / "no_method.py", "x = 1\n")
    write(tmp_path / "two_methods.py", METHOD.format(name="One") + METHOD.format(name="Two"))
    write(
        tmp_path / "plain_method.py",
        "from harness.method import Method\nclass A(Method):\n  lr = 1\n",
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    loaded = registry.load()
    assert "defines no Method" in loaded.broken["harness.methods.no_method"]
    assert "One, Two" in loaded.broken["harness.methods.two_methods"]
    assert "dra" in loaded.plugins["methods"]


def test_a_dataset_that_lacks_a_method_is_refused_by_name(tmp_path):
    text = METHOD.replace("harness.method import Method", "harness.dataset import Dataset")
    path = write(tmp_path / "half.py", text.replace("(Method)", "(Dataset)").format(name="Half"))
    with pytest.raises(HarnessError, match=r"not defined: .*read"):
        registry.load([path])


def test_two_methods_in_a_file_are_an_error(tmp_path):
    text = METHOD.format(name="One") + METHOD.format(name="Two")
    with pytest.raises(HarnessError, match="One, Two"):
        registry.load([write(tmp_path / "twins.py", text)])

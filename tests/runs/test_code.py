"""What changes a method's key: its own code and what it imports, and nothing else."""

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from harness import code, registry
from harness.errors import HarnessError
from harness.method import Method, method_code
from harness.runs import prepared
from tests.conftest import PLUGINS

METHOD = """
from dataclasses import dataclass
from harness.method import Method
{imports}

@dataclass(frozen=True, kw_only=True)
class {name}(Method):
    \"\"\"A method.

    Source: here.
    Differs: nothing known.
    \"\"\"

    def texts_a_step(self):
        return {value}
"""


def hashed(path, **changes) -> str:
    """Of a plugin file with the template's text."""
    given = {"imports": "", "name": "Mine", "value": "None"} | changes
    path.write_text(textwrap.dedent(METHOD.format(**given)))
    (plugin,) = registry.load([str(path)]).find("methods", path.stem)
    return method_code(plugin.cls)


def test_comments_docstrings_and_layout_are_no_code(tmp_path):
    path = tmp_path / "hashed_method.py"
    first = hashed(path)
    text = path.read_text().replace("A method.", "Another docstring.")
    path.write_text(text.replace("        return", "        # why\n\n        return"))
    (plugin,) = registry.load([str(path)]).find("methods", "hashed_method")
    assert method_code(plugin.cls) == first
    assert hashed(path, value="1") != first


def test_a_file_beside_a_plugin_that_it_imports_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    beside = tmp_path / "beside_the_plugin.py"
    found = []
    for value in (1, 2):
        beside.write_text(f"VALUE = {value}\n")
        for name in ("beside_the_plugin", "harness_plugin_with_a_file"):
            sys.modules.pop(name, None)  # as in a new process
        imports = "from beside_the_plugin import VALUE"
        found.append(hashed(tmp_path / "with_a_file.py", imports=imports, value="VALUE"))
    sys.modules.pop("beside_the_plugin")
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("changed", "methods"),
    [
        ("coop", {"coop", "cocoop", "kgcoop", "prograd", "metaprompt", "tcp"}),
        ("adapter", {"adapter", "adaptformer", "mma", "dra"}),
    ],
)
def test_a_change_of_a_method_file_reaches_the_methods_that_import_it(
    changed, methods, tmp_path, monkeypatch
):
    module = sys.modules[f"harness.methods.{changed}"]
    plugins = PLUGINS.plugins["methods"].values()
    families = {p.family: p.cls for p in plugins if p.name == p.family}
    before = {name: method_code(cls) for name, cls in families.items()}
    copy = tmp_path / f"{changed}.py"
    copy.write_text(Path(module.__file__).read_text(encoding="utf-8") + "\nANOTHER = 1\n")
    monkeypatch.setattr(module, "__file__", str(copy))
    monkeypatch.setattr(code, "_read", {})  # as in a new process
    moved = {name for name, cls in families.items() if method_code(cls) != before[name]}
    assert methods <= moved
    assert "zero_shot" not in moved
    assert "linear_probe" not in moved


def test_the_version_of_a_package_that_a_method_requires_is_part_of_its_code(monkeypatch):
    plugins = PLUGINS.plugins["methods"]
    found = []
    for number in ("1.0", "1.1"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, number=number: number)
        found.append([method_code(plugins[name].cls) for name in ("peft", "dra")])
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_the_engines_version_is_part_of_the_key(make_run, monkeypatch):
    first = make_run("adapter")
    keys = first.key, first.fit_key
    monkeypatch.setattr(prepared, "ENGINE", -1)
    other = make_run("adapter")
    assert other.key != keys[0]
    assert other.fit_key != keys[1]


def test_files_that_a_plugin_imports_count_wherever_they_lie_and_however_late(
    tmp_path, monkeypatch
):
    """A chain of two, of which the second is imported when it is used, in another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    one, two = (tmp_path / "elsewhere" / f"{name}_of_the_plugin.py" for name in ("one", "two"))
    one.write_text("def value():\n    import two_of_the_plugin\n    return two_of_the_plugin.X\n")
    found = []
    for value in (1, 2):
        two.write_text(f"X = {value}\n")
        for name in ("one_of_the_plugin", "harness_plugin_chained"):
            sys.modules.pop(name, None)  # as in a new process
        imports = "from one_of_the_plugin import value"
        found.append(hashed(tmp_path / "chained.py", imports=imports, value="value()"))
    sys.modules.pop("one_of_the_plugin")
    assert found[0] != found[1]


@pytest.mark.parametrize("whole", [True, False])
def test_a_module_of_a_package_counts_before_it_is_imported(tmp_path, monkeypatch, whole):
    """A method may import it when it is used; the package may have no file of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "package_of_the_plugin"
    package.mkdir()
    if whole:
        (package / "__init__.py").write_text("")
    importlib.invalidate_caches()
    found = []
    for value in (1, 2):
        (package / "layers.py").write_text(f"X = {value}\n")
        sys.modules.pop("harness_plugin_packaged", None)
        late = "def late():\n    from package_of_the_plugin import layers\n    return layers.X"
        found.append(hashed(tmp_path / "packaged.py", imports=late))
    assert found[0] != found[1]


def test_code_that_was_changed_after_it_was_imported_is_not_taken_for_what_runs(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited_in_a_notebook.py"
    path.write_text(textwrap.dedent(METHOD.format(imports="", name="Mine", value="1")))
    module = importlib.import_module(path.stem)
    (cls,) = (each for each in vars(module).values()
              if isinstance(each, type) and each.__module__ == path.stem)  # fmt: skip
    first = method_code(cls)
    path.write_text(path.read_text() + "\n# a comment\n")
    assert method_code(cls) == first
    path.write_text(path.read_text() + "\nX = 2\n")
    with pytest.raises(HarnessError, match="Start Python anew"):
        method_code(cls)
    importlib.invalidate_caches()
    again = importlib.reload(module)
    assert method_code(getattr(again, cls.__name__)) != first


def test_a_class_that_is_made_by_a_function_is_refused():
    class Local(Method):
        """What it closes over is in no file."""

    with pytest.raises(HarnessError, match="outside of functions"):
        method_code(Local)

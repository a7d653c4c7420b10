"""What a plan can refuse is refused before anything is computed, in one sentence with its name; and
what fails later says where."""

import shutil
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.cli.commands import main
from harness.records.store import Store
from tests.cli.test_commands import QUICK
from tests.conftest import TOY


def run(folder, *arguments, methods="adapter", tasks="base2new"):
    chosen = ["run", "--methods", methods, "--tasks", tasks, "--results", str(folder)]
    return main([*chosen, *QUICK, "--jobs", "1", *arguments])


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("lora", ["--set", "lora.rank=0"], "lora.rank must be at least 1, not 0"),
        ("metaprompt", ["--set", "metaprompt.tokens=0"], "metaprompt.tokens must be at least 1"),
        ("vpt", ["--set", "vpt.depth=0"], "vpt.depth must be at least 1"),
        ("proda", ["--set", "proda.count=0"], "must be at least 1"),
        ("adapter", ["--set", "adapter.lr=1e999"], "adapter.lr must be a finite number, not inf"),
        ("adapter", ["--set", "adapter.weight_decay=-1e-3"], "must not be negative"),
        ("adapter", ["--set", "engine.image_chunk=-1"], "engine.image_chunk must be 0"),
        ("adapter", ["--set", "engine.memory=-0.5"], "engine.memory must be 0"),
        ("adapter", ["--set", "engine.memory=1e999"], "engine.memory must be 0"),
        ("adapter", ["--set", "engine.cache_bytes=-1"], "engine.cache_bytes must be 0"),
        ("adapter", ["--shots", "99999999999999999999"], "asks for too much"),
        ("adapter", ["--seeds", "1-100000000"], "asks for too much"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, arguments, says, tmp_path, capsys):
    assert run(tmp_path / "r", *arguments, methods=method) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("length", [40, 400])
def test_a_class_name_that_the_tower_cannot_take_is_refused(length, tmp_path, capsys):
    code = TOY.read_text().replace('"cyan"', f'"{"very " * length}cyan"')
    code = code.replace("fill=name", 'fill="cyan" if "very" in name else name')
    (tmp_path / "toy3.py").write_text(code.replace("class Toy(", "class Toy3("))
    plugin = ["--plugin", str(tmp_path / "toy3.py"), "--datasets", "toy3"]
    assert run(tmp_path / "r", *plugin) == 2
    assert "Shorten the class name" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def plugin(path, kind, body, decorator="@dataclass(frozen=True, kw_only=True)"):
    """A plugin file with one class of a kind."""
    names = {"method": "Method, Edit", "task": "Task, Fit, Evaluation", "dataset": "Dataset, Item"}
    path.write_text(
        f"from dataclasses import dataclass\nfrom harness.{kind} import {names[kind]}\n\n"
        f"{decorator}\nclass Mine({kind.title()}):\n"
        '    """A plugin.\n\n    Source: here.\n    Differs: nothing known.\n    """\n\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
    )
    return ["--plugin", str(path)]


def test_a_plugin_without_its_decorator_is_refused(tmp_path, capsys):
    given = plugin(tmp_path / "bare.py", "method", "rank: int = 3\n", decorator="")
    assert run(tmp_path / "r", *given, methods="bare") == 2
    assert "dataclass" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (
            "task",
            """
            def fit(self, dataset):
                return {}[dataset]

            def evaluations(self, dataset):
                return []
            """,
            "the task broken failed: KeyError: 'toy' (broken.py, line ",
        ),
        (
            "dataset",
            """
            def read(self, root):
                return {"train": [Item(1, 2, 3)]}["test"]

            def open(self, item, root):
                raise NotImplementedError
            """,
            "broken.read failed: KeyError: 'test' (broken.py, line ",
        ),
        (
            "method",
            """
            def edits(self, clip, classes):
                return {"image.features": Edit(3)}
            """,
            "broken on emoji-mini failed: TypeError",
        ),
    ],
)
def test_an_error_in_a_plugin_is_a_sentence_with_its_file_and_line(
    kind, body, says, tmp_path, capsys
):
    given = plugin(tmp_path / "broken.py", kind, body)
    chosen = {"method": {"methods": "broken"}, "task": {"tasks": "broken"}}.get(kind, {})
    if kind == "dataset":
        given += ["--datasets", "broken"]
    assert run(tmp_path / "r", *given, **chosen) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("y[:, :5]", "Narrow at image.features returned ("),
        ("y @ y", "Narrow at image.features failed: RuntimeError"),
        ("None", "Narrow at image.features returned NoneType in the place of ("),
    ],
)
def test_an_edit_with_a_wrong_shape_is_named_with_its_site(returned, says, tmp_path, capsys):
    (tmp_path / "narrow.py").write_text(
        "from dataclasses import dataclass\nfrom harness.method import Edit, Method\n\n\n"
        f"class Narrow(Edit):\n    def forward(self, x, y, at):\n        return {returned}\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Narrowed(Method):\n"
        '    """Wrong.\n\n    Source: here.\n    Differs: nothing known.\n    """\n\n'
        '    def edits(self, clip, classes):\n        return {"image.features": Narrow()}\n'
    )
    assert run(tmp_path / "r", "--plugin", str(tmp_path / "narrow.py"), methods="narrow") != 0
    printed = capsys.readouterr()
    assert says in printed.out + printed.err


def test_a_method_that_needs_validation_images_is_named_where_there_are_none(tmp_path, capsys):
    code = TOY.read_text().replace('"val": items(range(20, 26))', '"val": []')
    code = code.replace("items(range(20))", "items(range(1))")
    (tmp_path / "toy4.py").write_text(code.replace("class Toy(", "class Toy4("))
    given = ["--plugin", str(tmp_path / "toy4.py"), "--datasets", "toy4", "--shots", "1"]
    assert run(tmp_path / "r", *given, methods="zero_shot,tip_adapter", tasks="few_shot") == 2
    error = capsys.readouterr().err
    assert "tip_adapter chooses its settings on validation images" in error


@pytest.mark.parametrize("damage", ["zeros", "a bit", "what is said of it"])
def test_a_fit_that_was_altered_is_fitted_again_to_the_same_weights(damage, tmp_path):
    assert run(tmp_path) == 0
    (weights,) = (tmp_path / "fits").glob("*.safetensors")
    kept, before = shutil.copy(weights, tmp_path / "kept"), load_file(weights)
    with safe_open(str(weights), "pt") as file:
        about = file.metadata()
    altered = {name: tensor.clone() for name, tensor in before.items()}
    first = next(iter(altered))
    if damage == "zeros":
        altered[first].zero_()
    elif damage == "a bit":
        altered[first].view(torch.int32).flatten()[0] ^= 1
    else:
        about["classes"] = about["classes"].replace("red", "blue")
    save_file(altered, weights, about)
    (record,) = Store(tmp_path).records()
    Store(tmp_path).path(record.run, record.key).unlink()
    assert run(tmp_path) == 0
    (again,) = Store(tmp_path).records()
    assert again.scores == record.scores
    assert "fit_shared" not in again.cost
    assert all(tensor.equal(before[name]) for name, tensor in load_file(weights).items())
    assert load_file(kept).keys() == before.keys()

"""`import harness`: what the command line does, from Python."""

from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import harness
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.method import Method, published
from harness.methods.adapter import Adapter
from harness.records.store import Store
from harness.tasks.few_shot import FewShot
from tests.cli.test_commands import QUICK
from tests.conftest import PLUGINS, TOY


@dataclass(frozen=True, kw_only=True)
class Own(Adapter):
    """An adapter of one's own.

    Source: here.
    Differs: nothing known.
    """


TOYS = PLUGINS.plugins["datasets"]["toy"].cls


@dataclass(frozen=True, kw_only=True)
class NothingLearned(Method):
    """The frozen backbone.

    Source: here.
    Differs: nothing known.
    """

    unused: int = published(1, "here")


def run(folder, **options):
    given = {
        "methods": "zero_shot,adapter", "tasks": "base2new", "datasets": "toy", "shots": 4,
        "settings": {"engine.max_steps": 2}, "plugins": [str(TOY)], "results": folder, "jobs": 1,
    }  # fmt: skip
    return harness.run(**given | options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The results of two methods, and where they are."""
    folder = tmp_path_factory.mktemp("results")
    return run(folder), folder


def test_results_are_records_a_frame_and_tables_that_show_themselves(made):
    results, folder = made
    assert [record.status for record in results.records] == ["done", "done"]
    assert set(results.frame()["evaluation"]) == {"base", "new"}
    text = str(results.leaderboard())
    assert "| adapter" in text
    assert repr(results.leaderboard()) == text
    assert "<table>" in results._repr_html_()
    assert sorted(str(harness.leaderboard(folder)).splitlines()) == sorted(text.splitlines())
    assert "zero_shot" not in str(harness.leaderboard(folder, methods="adapter"))


def test_the_command_line_finds_what_python_made(made, capsys):
    _, folder = made
    command = ["run", "--methods", "zero_shot,adapter", "--tasks", "base2new"]
    assert main([*command, "--results", str(folder), *QUICK, "--jobs", "1"]) == 0
    assert "to run: 0 of 2" in capsys.readouterr().out


def test_a_loaded_fit_predicts_what_its_record_says(made):
    results, folder = made
    record = results.records[1]
    model = harness.load(record, plugins=[str(TOY)])
    toy = TOYS()
    names = model.class_names
    items = [item for item in toy.read(None)["test"] if item.name in names]
    images = [toy.open(item, None) for item in items]
    side = load_file(Store(folder).path(record.run, record.key, ".predictions.safetensors"))
    assert model.logits(images).argmax(-1).tolist() == side["base.class"].tolist()
    assert model.features(images[:2]).shape == (2, 128)
    other = model.logits(images[:3], ["a red disc", "a cat"])
    assert other.shape == (3, 2)
    path = Store(folder).path(record.run, record.key)
    again = harness.load(path, plugins=[str(TOY)])
    assert torch.equal(again.logits(images[:2]), model.logits(images[:2]))


def test_a_loaded_fit_sees_transparent_pictures_on_white(made, tmp_path):
    model = harness.load(made[0].records[1], plugins=[str(TOY)])
    clear = Image.new("RGBA", (50, 40), (0, 0, 0, 0))
    white = Image.new("RGB", (50, 40), "white")
    clear.save(tmp_path / "clear.png")
    pixels = [model.preprocess(each) for each in (clear, white, tmp_path / "clear.png")]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[2], pixels[1])


def test_what_cannot_be_loaded_is_said(made, tmp_path):
    with pytest.raises(HarnessError, match="nothing was fitted in the run of zero_shot"):
        harness.load(made[0].records[0])
    with pytest.raises(HarnessError, match="does not hold a fit"):
        harness.load(tmp_path / "nothing.safetensors")
    strange = tmp_path / "strange.safetensors"
    strange.write_bytes(b"no tensors")
    with pytest.raises(HarnessError, match="does not hold a fit"):
        harness.load(strange)


def test_classes_and_objects_are_run_as_names_are(tmp_path):
    results = run(
        tmp_path, methods=["zero_shot", NothingLearned, Adapter(rank=2, epochs=1)],
        tasks=[FewShot], datasets=[TOYS()], plugins=[], jobs=2,
    )  # fmt: skip
    labels = list(dict.fromkeys(results.frame()["label"]))
    assert labels[:2] == ["zero_shot", "nothing_learned"]
    assert "rank=2" in labels[2]
    assert results.records[0].scores == results.records[1].scores
    assert results.records[2].cost["trainable_parameters"] > 0


def test_a_wrong_request_is_an_error_with_a_sentence(tmp_path):
    with pytest.raises(HarnessError, match="Did you mean 'adapter'"):
        run(tmp_path, methods="adaptr")
    with pytest.raises(HarnessError, match=r"name\.field"):
        run(tmp_path, settings={"rank": 3})
    with pytest.raises(HarnessError, match="neither a name nor a Method"):
        run(tmp_path, methods=[3])


def test_a_setting_that_nothing_reads_and_numbers_that_are_none_are_errors(tmp_path):
    with pytest.raises(HarnessError, match="which nothing here reads"):
        run(tmp_path, methods="zero_shot", settings={"adapter.rank": 4})
    for wrong in ({"seeds": "12"}, {"seeds": -1}, {"seeds": [1.5]}, {"shots": True}, {"seeds": []}):
        with pytest.raises(HarnessError, match="must be whole numbers"):
            run(tmp_path, **wrong)


def test_a_record_states_the_call_that_made_it(made, tmp_path):
    plugins, jobs = f"plugins=[{str(TOY)!r}], jobs=1", "settings={'engine.max_steps': 2}"
    rest = f"datasets='toy', shots=4, {jobs}, {plugins})"
    said = {record.provenance["command"] for record in made[0].records}
    assert said == {f"harness.run(methods='zero_shot,adapter', tasks='base2new', {rest}"}
    results = run(tmp_path, methods=[NothingLearned], tasks=(FewShot,), seeds=[2])
    (said,) = {record.provenance["command"] for record in results.records}
    start = "harness.run(methods=[NothingLearned], tasks=[FewShot], datasets='toy', shots=4, "
    assert said.startswith(f"{start}seeds=[2], ")


def test_numbers_of_numpy_are_numbers(tmp_path):
    import numpy as np

    results = run(tmp_path, methods="zero_shot", seeds=np.arange(1, 3), shots=np.int64(4))
    assert [record.run["seed"] for record in results.records] == [1, 2]


def test_a_fitted_model_refuses_what_is_no_list_of_images_or_names(tmp_path):
    (record,) = run(tmp_path, methods="adapter").records
    model = harness.load(record)
    for wrong, says in (("cat.jpg", "must be a list"), ([], "list is empty"),
                        (torch.zeros(3, 8, 8), "must be")):  # fmt: skip
        with pytest.raises(HarnessError, match=says):
            model.logits(wrong)
    for names in ("cat", [], iter("ab")):
        with pytest.raises(HarnessError, match="must be a list of names"):
            model.logits(["cat.jpg"], names)
    for names in (["cat", 1], ["cat", None], ["cat", " "]):
        with pytest.raises(HarnessError, match="must be texts that are not empty"):
            model.logits(["cat.jpg"], names)
    with pytest.raises(HarnessError, match="not NoneType"):
        harness.load(None)


def test_a_fit_of_another_run_under_this_ones_name_is_not_used(tmp_path):
    first, second = run(tmp_path, methods="adapter", seeds=[1, 2]).records
    store = Store(tmp_path)
    store.weights(first.fit).write_bytes(store.weights(second.fit).read_bytes())
    store.path(first.run, first.key).unlink()
    (again,) = run(tmp_path, methods="adapter", seeds=[1]).records
    assert "fit_shared" not in again.cost
    assert again.scores == first.scores


def test_a_fit_of_other_code_is_not_loaded(tmp_path):
    plugin = tmp_path / "changing.py"
    code = (
        "from dataclasses import dataclass\nfrom harness.methods.adapter import Adapter\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Changing(Adapter):\n"
        '    """A.\n\n    Source: here.\n    Differs: nothing known.\n    """\n\n    x: int = 1\n'
    )
    plugin.write_text(code)
    plugins = [str(TOY), str(plugin)]
    (record,) = run(tmp_path / "r", methods="changing", plugins=plugins).records
    assert harness.load(record, plugins=plugins).class_names
    plugin.write_text(code + "\n\nY = 2\n")
    with pytest.raises(HarnessError, match="fitted with other code of changing"):
        harness.load(record, plugins=plugins)


def test_two_objects_of_one_class_are_two_rows_and_one_object_needs_no_list(tmp_path):
    methods = ["adapter", Adapter(rank=2), Adapter(rank=4)]
    results = run(tmp_path, methods=methods)
    assert len(results.records) == 3
    assert len(set(results.frame()["label"])) == 3
    assert len(run(tmp_path, methods=Adapter(rank=2), plugins=str(TOY)).records) == 1
    with pytest.raises(HarnessError, match="two tasks are called 'few_shot'"):
        run(tmp_path, tasks=[FewShot(), FewShot(forgetting=True)])


def test_a_fit_of_a_class_is_loaded_with_the_class(tmp_path):
    (record,) = run(tmp_path, methods=[Own(rank=2)]).records
    assert harness.load(record, plugins=[str(TOY), Own]).class_names


def test_own_images_take_their_template_and_names_as_the_command_does(tmp_path):
    for name in ("oak", "ash"):
        for part in ("train", "test"):
            folder = tmp_path / "leaves" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (48, 48), (90, len(name), len(part))).save(folder / "1.png")
    names = tmp_path / "names.csv"
    names.write_text("oak,Quercus robur\n")
    asked = {
        "methods": "zero_shot", "tasks": "few_shot", "datasets": f"folder:{tmp_path / 'leaves'}",
        "shots": 1, "plugins": [], "settings": {},
    }  # fmt: skip
    first = run(tmp_path / "r", **asked)
    second = run(tmp_path / "r", **asked, template="a leaf of {}.", class_names=names)
    assert first.records[0].key != second.records[0].key
    (kept,) = (tmp_path / "r" / "splits").glob(
        f"{second.records[0].run['fingerprints']['evaluated']['test']}*"
    )
    assert '"a leaf of {}."' in kept.read_text()
    assert "Quercus robur" in kept.read_text()
    both = run(tmp_path / "r", **asked, template=["a leaf of {}.", "a {} leaf."])
    assert both.records[0].status == "done"
    assert both.records[0].key not in {first.records[0].key, second.records[0].key}
    with pytest.raises(HarnessError, match=r"template 'a leaf' has no \{\}"):
        run(tmp_path / "r", **asked, template="a leaf")


def test_a_run_leaves_the_threads_of_the_caller_as_they_were(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        harness.run("zero_shot", "few_shot", "toy", shots=2, results=tmp_path, plugins=[str(TOY)],
                    cache_limit=0, jobs=1)  # fmt: skip
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

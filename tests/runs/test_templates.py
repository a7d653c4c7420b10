"""Several templates of a dataset: which methods average them, and which take the first."""

from dataclasses import replace

import pytest
from PIL import Image

from harness import config, registry
from harness.dataset import Classes
from harness.leaderboards import leaderboard
from harness.records.store import Store
from harness.runs import plan as planning
from harness.runs.context import Context
from harness.runs.remarks import remarks
from tests.records import worlds

TEMPLATES = ("art of a {}.", "a {}.", "one {}.")


@pytest.fixture
def runs(tmp_path, toy):
    """runs("coop", ...): the run of each method on a folder with several templates."""
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            path = tmp_path / "zoo" / part / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(part), len(name), ord(name[0]))).save(path)

    def planned(*methods, templates=TEMPLATES, settings=()):
        bindings = [*config.of_own_images(templates, None), *map(config.read_set, settings)]
        request = planning.Request(
            methods=",".join(methods), tasks="few_shot", datasets=f"folder:{tmp_path / 'zoo'}",
            backbone="toy", shots=[1], seeds=[1], bindings=bindings,
        )  # fmt: skip
        found = planning.plan(request, registry.load(), context=Context(toy))
        return {run.method.name: run for run in found}

    return planned


def test_a_method_that_changes_the_towers_takes_the_first_and_others_all(runs):
    found = runs("zero_shot", "taskres", "coop", "lora")
    taken = {name: run.train.classes.template for name, run in found.items()}
    assert taken == {"zero_shot": "\n".join(TEMPLATES), "taskres": "\n".join(TEMPLATES),
                     "coop": TEMPLATES[0], "lora": TEMPLATES[0]}  # fmt: skip
    assert found["coop"].evaluated["test"].classes.template == TEMPLATES[0]


def test_the_plan_says_who_takes_the_first(runs):
    (said,) = (each for each in remarks([*runs("zero_shot", "coop", "lora").values()])
               if each.startswith("templates"))  # fmt: skip
    assert said == (
        "templates, folder:zoo: methods that leave the towers as they are average all 3; lora: the "
        "first alone, 'art of a {}.'; coop: words of their own."
    )
    few = remarks([*runs("zero_shot").values()]), remarks([*runs("coop", templates="{}").values()])
    assert not [each for some in few for each in some if each.startswith("templates")]


def test_all_methods_are_scored_on_one_list_so_that_they_can_be_compared(runs):
    found = runs("zero_shot", "coop")
    assert len({run.evaluated["test"].fingerprint for run in found.values()}) == 1
    other = runs("coop", templates=TEMPLATES[:2])["coop"]
    assert other.evaluated["test"].fingerprint != found["coop"].evaluated["test"].fingerprint


def test_the_record_names_the_template_that_was_taken(runs):
    found = runs("zero_shot", "coop")
    assert found["coop"].identity["one_template"] == {"folder:zoo": TEMPLATES[0]}
    assert "one_template" not in found["zero_shot"].identity


def test_a_method_without_words_of_its_own_asks_the_users_template(runs):
    """Where no paper says what it asks; on published datasets it asks as its authors' code."""
    run = runs("lora", templates=TEMPLATES[:1])["lora"]
    assert run.method.value.prompts(run.train.classes) == [["art of a ant."], ["art of a bee."]]
    assert run.identity["asks"] == {"folder:zoo": TEMPLATES[0]}
    usual = runs("lora", templates=None)["lora"]
    assert usual.method.value.prompts(usual.train.classes)[0] == ["a photo of a ant."]
    assert "asks" not in usual.identity
    assert run.fit_key != usual.fit_key
    published = Classes("oxford_pets", ("pug",), "a photo of a {}, a type of pet.")
    assert run.method.value.prompts(published) == [["a photo of a pug."]]


def test_a_head_without_words_of_its_own_is_named_among_those_that_do_not_average(runs):
    """It leaves the towers as they are, but asks one text of each class."""
    found = runs("zero_shot", "rada", "mmrl", settings=["rada.heads=4"])
    assert found["rada"].one_template == {"folder:zoo": TEMPLATES[0]}
    (said,) = (each for each in remarks([*found.values()]) if each.startswith("templates"))
    assert "rada, mmrl: the first alone" in said


def test_a_table_says_which_rows_took_the_first(tmp_path):
    worlds.write(tmp_path, {"zero_shot": 0.5}, images=40)
    worlds.write(tmp_path, {"coop": 0.6}, images=40, one_template={"toy_a": "a {}."})
    records = Store(tmp_path).records()
    said = "A dataset's several templates are averaged by all but coop."
    assert said in leaderboard.render(records)
    none = [replace(r, status="not applicable", scores={}) if r.run["method"] == "zero_shot" else r
            for r in records]  # fmt: skip
    assert said not in leaderboard.render(none)


def test_a_fit_that_is_cut_to_its_warm_up_is_said(make_run):
    (said,) = [
        each for each in remarks([make_run("coop", max_steps=2)]) if each.startswith("warm-up")
    ]
    assert said.startswith("warm-up, coop: 1 of 2 steps have the rate of the warm-up")
    assert not [
        each for each in remarks([make_run("mma", max_steps=2)]) if each.startswith("warm-up")
    ]

"""Texts of classes from the user's files: read as published, matched by name, part of the key."""

import json

import pytest
import torch

import harness
from harness.class_texts import read
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.method import HeadContext
from harness.methods.cupl import sentence
from tests.conftest import TOY
from tests.methods.test_contract import FIT, build, grafted, images, logits
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_weights import cosines, unit
from tests.toy import NAMES


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_names_match_without_case_underscores_and_punctuation(tmp_path):
    file = written(tmp_path / "a.json", {"Barn_Owl": ["white"], "St. Bernard dog": "big"})
    assert read(file).of(["barn owl", "st bernard dog"]) == (("white",), ("big",))


def test_an_exact_name_wins_over_one_that_is_only_like_it(tmp_path):
    file = written(tmp_path / "a.json", {"Crane": ["bird"], "crane": ["machine"]})
    assert read(file).of(["crane", "Crane"]) == (("machine",), ("bird",))
    with pytest.raises(HarnessError, match=r"no texts for 1 of 1 classes: 'CRANE'"):
        read(file).of(["CRANE"])


def test_classes_without_texts_and_names_that_are_no_class_are_listed(tmp_path):
    file = written(tmp_path / "a.json", {"owl": ["x"], "wren": ["y"]})
    with pytest.raises(HarnessError, match=r"for 2 of 3 classes: 'jay', 'tit'.*no class: 'wren'"):
        read(file).of(["owl", "jay", "tit"])


def test_lists_without_names_follow_the_classes_and_must_speak_of_them(tmp_path):
    text = (
        'DATASET:\n  NAME: "X"\n  ATTR: [\n [ "A Forest which is green" ], # Forest\n ["River"]]\n'
    )
    file = written(tmp_path / "a.yaml", text)
    assert read(file).of(["forest", "river"]) == (("A Forest which is green",), ("River",))
    with pytest.raises(HarnessError, match=r"'sea'.*file of another dataset"):
        read(file).of(["forest", "sea"])
    with pytest.raises(HarnessError, match="for 2 classes in order, and there are 3"):
        read(file).of(["forest", "river", "sea"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"), ({}, "must hold an object"), ("7", "must hold an object"),
        ({"a": []}, "'a' must have a list of texts"), ({"a": ["x", " "]}, "none empty"),
        ({"a": {"b": 1}}, "'a' must have a list of texts"),
    ],
)  # fmt: skip
def test_other_content_is_refused_by_name(content, said, tmp_path):
    with pytest.raises(HarnessError, match=said):
        read(written(tmp_path / "a.json", content))


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['true']"])
def test_yaml_is_never_executed(text, tmp_path):
    with pytest.raises(HarnessError, match="cannot be read"):
        read(written(tmp_path / "a.yaml", text))


def test_cupl_is_the_cosine_with_the_mean_of_each_classs_own_texts(exact):
    text = [
        unit(exact.text(exact.tokenize(list(texts)))).mean(0) for texts in FIT.descriptions
    ]  # fmt: skip
    expected = exact.logit_scale.exp() * cosines(exact.image(images()), torch.stack(text))
    got = logits(grafted("cupl", exact), FIT, images())
    torch.testing.assert_close(got, expected, **CLOSE)


def test_dclip_is_the_mean_of_the_cosines_with_descriptors_in_a_clause(exact):
    columns = []
    for name, descriptors in zip(FIT.names, FIT.descriptions, strict=True):
        ids = exact.tokenize([f"{name}, {sentence(each)}" for each in descriptors])
        columns.append(cosines(exact.image(images()), exact.text(ids)).mean(1))
    expected = exact.logit_scale.exp() * torch.stack(columns, 1)
    torch.testing.assert_close(logits(grafted("dclip", exact), FIT, images()), expected, **CLOSE)
    assert sentence("has wings") == "which has wings"
    assert sentence("a long tail") == "which is a long tail"
    assert sentence("used by cooks") == "which is used by cooks"
    assert sentence("long tail") == "which has long tail"


def test_features_of_classes_with_fewer_texts_are_zero_in_the_rest(exact):
    head = build("cupl").head(exact, FIT)
    texts = torch.randn(2, 3, 36).double()
    texts[1, 1:] = 0
    image = torch.randn(4, 36).double()
    scale = torch.tensor(1.0).double()
    got = head(image, texts, HeadContext(scale, {"texts": texts}))
    alone = head(image, texts[1:, :1], HeadContext(scale, {"texts": texts[1:, :1]}))
    torch.testing.assert_close(got[:, 1:], alone, **CLOSE)


def run(tmp_path, *options):
    return main(["run", "--methods", "cupl,zero_shot", "--tasks", "base2new", "--datasets", "toy",
                 "--shots", "1", "--plugin", str(TOY), "--results", str(tmp_path / "r"),
                 "--cache-limit", "0", *map(str, options)])  # fmt: skip


def test_a_run_is_described_by_its_texts_and_not_applicable_without_them(tmp_path, capsys):
    assert run(tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not applicable: cupl needs texts of the classes: give a file with --class-texts" in said
    first = written(tmp_path / "a.json", {name: [f"a {name} disc"] for name in NAMES})
    second = written(tmp_path / "b.json", {name: [f"a {name} square"] for name in NAMES})
    for file in (first, second):
        assert run(tmp_path, "--class-texts", file) == 0
    records = [r for r in harness.leaderboard(tmp_path / "r").records if r.status == "done"]
    described = [r for r in records if r.run["method"] == "cupl"]
    assert len({r.run["class_texts"] for r in described}) == len(described) == 2
    assert len([r for r in records if r.run["method"] == "zero_shot"]) == 1
    capsys.readouterr()
    assert run(tmp_path, "--class-texts", written(tmp_path / "c.json", {"owl": ["x"]})) == 2
    assert "c.json has no texts for 7 of 7 classes" in capsys.readouterr().err


def test_texts_that_no_method_reads_are_a_mistake(tmp_path, capsys):
    file = written(tmp_path / "a.json", {name: ["x"] for name in NAMES})
    code = main(["run", "--methods", "zero_shot", "--tasks", "base2new", "--datasets", "toy",
                 "--plugin", str(TOY), "--results", str(tmp_path / "r"), "--shots", "1",
                 "--class-texts", str(file)])  # fmt: skip
    assert code == 2
    assert "none of the methods reads" in capsys.readouterr().err

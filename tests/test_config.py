"""Settings: gin literals, --set, --sweep, types, and whom a profile applies to."""

import pytest

from harness import config
from harness.config import Binding, Engine, build, build_engine, read_gin, read_set, read_sweeps
from harness.errors import HarnessError
from tests.conftest import PLUGINS

DRA = PLUGINS.plugins["methods"]["dra"]
DRA_T = PLUGINS.plugins["methods"]["dra-t"]


def gin(tmp_path, text: str) -> list[Binding]:
    path = tmp_path / "settings.gin"
    path.write_text(text)
    return read_gin(path)


def test_a_gin_file_binds_literals(tmp_path):
    bindings = gin(tmp_path, "# a comment\ndra.rank = 8\ndra.ratios = (1.0, 0.5)\n")
    method, overrides = build(DRA, bindings)
    assert (method.rank, method.ratios) == (8, (1.0, 0.5))
    assert overrides == {"rank": 8, "ratios": (1.0, 0.5)}
    assert bindings[1].origin == "settings.gin:3"


@pytest.mark.parametrize(
    "text",
    [
        "base2new.dra.rank = 4",
        "dra.rank = %macro",
        "dra.rank = @function()",
        "scope/dra.rank = 1",
        "import os",
        "include 'other.gin'",
        "dra.rank = __import__('os')",
        "dra.rank =",
        "dra.ratios = (1.0,",
    ],
)
def test_anything_but_literals_is_refused_with_the_file(tmp_path, text):
    with pytest.raises(HarnessError, match=r"settings\.gin"):
        gin(tmp_path, text)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="does not exist"):
        read_gin(tmp_path / "none.gin")


def test_later_settings_win(tmp_path):
    bindings = [*gin(tmp_path, "dra.rank = 8"), read_set("dra.rank=16")]
    assert build(DRA, bindings)[0].rank == 16


def test_json_for_a_text_is_kept_as_json_however_it_was_read(tmp_path):
    plugin = PLUGINS.plugins["methods"]["peft"]
    text = '{"peft_type": "VERA", "r": 256, "save_projection": true}'
    given = [
        read_set(f"peft.config={text}"),
        read_set(f"peft.config={text.replace('true', 'True')}"),
        *gin(tmp_path, f"peft.config = {text.replace('true', 'True')}"),
        *(each for (each,) in read_sweeps([f"peft.config={text.replace('true', 'True')}"])),
    ]
    assert {build(plugin, [binding])[0].config for binding in given} == {text}
    for wrong in ("{1, 2}", '{"a": {1}}', '[{"a": 1}]', '{"a": 1e999}'):
        with pytest.raises(HarnessError, match=r"peft\.config must be str"):
            build(plugin, [read_set(f"peft.config={wrong}")])


def test_a_familys_setting_holds_for_its_variants_but_not_for_what_they_fix():
    bindings = [read_set("dra.rank=8"), read_set("dra.image=dra")]
    method, _ = build(DRA_T, bindings)
    assert (method.rank, method.image) == (8, "adapter")


def test_a_variants_own_setting_holds_for_it_alone():
    bindings = [read_set("dra-t.rank=8"), read_set("dra_t.image=dra")]
    assert build(DRA_T, bindings)[0].rank == 8
    assert build(DRA_T, bindings)[0].image == "dra"
    assert build(DRA, bindings)[0].rank == 32


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("dra.rank=8.5", "must be int"),
        ("dra.rank=true", "must be int"),
        ("dra.noise=loud", "gumbel"),
        ("dra.ratios=(1.0,'x')", "tuple"),
        ("dra.gradient_rescale=1", "must be bool"),
        ("dra.rnak=8", "Did you mean 'rank'"),
    ],
)
def test_a_wrong_value_or_field_says_what_is_allowed(setting, says):
    with pytest.raises(HarnessError, match=says):
        build(DRA, [read_set(setting)])


def test_only_what_differs_from_the_plain_method_is_an_override():
    assert build(DRA, [read_set("dra.rank=32")])[1] == {}
    profile = [Binding("dra", "rank", 16, "profile", user=False)]
    assert build(DRA, [*profile, read_set("dra.rank=32")])[1] == {"rank": 32}
    assert build(DRA, [*profile, read_set("dra.rank=16")])[1] == {}


def test_an_integer_may_stand_for_a_float():
    assert build(DRA, [read_set("dra.lr=1")])[0].lr == 1.0
    assert type(build(DRA, [read_set("dra.lr=1")])[0].lr) is float


@pytest.mark.parametrize("text", ["dra.rank", "rank=8", "dra.=8", "=8", "dra.rank="])
def test_a_setting_of_another_form_is_refused(text):
    with pytest.raises(HarnessError, match="form"):
        read_set(text)


def test_sweeps_combine_and_keep_tuples_whole():
    combinations = read_sweeps(["dra.ratios=(1.0,0.5),(1.0,0.25)", "dra.noise=none,random"])
    values = [tuple(b.value for b in each) for each in combinations]
    assert values == [
        ((1.0, 0.5), "none"),
        ((1.0, 0.5), "random"),
        ((1.0, 0.25), "none"),
        ((1.0, 0.25), "random"),
    ]
    assert read_sweeps([]) == [[]]


def test_engine_settings_are_typed_too():
    assert build_engine([read_set("engine.max_steps=300")]) == Engine(max_steps=300)
    assert build_engine([read_set("engine.max_steps=None")]) == Engine()
    for bad in ("max_steps=0", "max_epochs=-1", "crop_scale=(0.5, 2.0)", "crop_scale=(0.5,)"):
        with pytest.raises(HarnessError, match="engine"):
            build_engine([read_set(f"engine.{bad}")])
    with pytest.raises(HarnessError, match=r"engine\.split"):
        build_engine([read_set("engine.split=train")])


def test_memory_settings_are_not_part_of_a_runs_identity():
    assert Engine(image_chunk=4, checkpointing=True).identity() == Engine().identity()
    assert Engine(max_steps=3).identity() != Engine().identity()
    assert Engine().identity(measured=True) == Engine().identity()
    for changed in (Engine(checkpointing=True), Engine(graphs=False), Engine(text_chunk=4)):
        assert changed.identity(measured=True) != Engine().identity(measured=True)


def test_the_profile_applies_to_emoji_mini_alone():
    assert config.profile("emoji-mini")
    for backbone in ("ViT-B-16-quickgelu:openai", "local-dir:/data/emoji-mini", "../emoji-mini"):
        assert config.profile(backbone) == []


def test_without_a_profile_every_method_has_its_papers_recipe():
    bindings = config.profile("ViT-B-16-quickgelu:openai")
    assert build_engine(bindings) == Engine()
    for plugin in PLUGINS.plugins["methods"].values():
        assert build(plugin, bindings) == (plugin.cls(**plugin.fixed), {})


def test_the_profile_binds_only_what_exists_and_is_no_override():
    bindings = config.profile("emoji-mini")
    known = [name for kind in PLUGINS.plugins.values() for name in kind]
    config.check_targets(bindings, known)
    assert build_engine(bindings).max_steps == 300
    assert build_engine(bindings).max_epochs == 30
    for plugin in PLUGINS.plugins["methods"].values():
        assert build(plugin, bindings)[1] == {}


@pytest.mark.parametrize(("setting", "why"), [
    ("lora.epochs=3", "`iterations` counts"), ("dyt.warmup_lr=0.1", "the warm-up is linear"),
    ("tip_x.epochs=5", "nothing is trained"), ("zero_shot.lr=9.0", "nothing is trained"),
])  # fmt: skip
def test_a_setting_without_an_effect_is_refused(setting, why):
    name = setting.partition(".")[0]
    with pytest.raises(HarnessError, match=f"{setting.partition('=')[0]} would have no .*{why}"):
        build(PLUGINS.plugins["methods"][name], [read_set(setting)])

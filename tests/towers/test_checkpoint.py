"""A backbone written as a folder is the same backbone when open_clip loads it."""

import pytest
import torch

from harness.errors import HarnessError
from harness.towers import backbone, checkpoint


def test_a_written_backbone_is_loaded_with_the_same_fingerprint(mini, tmp_path):
    checkpoint.write(tmp_path, mini, {})
    loaded = backbone.load(f"local-dir:{tmp_path}")
    assert loaded.fingerprint == mini.fingerprint
    (tmp_path / "again").mkdir()
    checkpoint.write(tmp_path / "again", loaded, {})  # from a folder, too
    assert backbone.load(f"local-dir:{tmp_path / 'again'}").fingerprint == mini.fingerprint


def test_a_changed_parameter_is_the_only_one_that_differs(mini, tmp_path):
    weight = mini.text.blocks[2].attn.weight
    checkpoint.write(tmp_path, mini, {id(weight): torch.ones_like(weight)})
    loaded = backbone.load(f"local-dir:{tmp_path}")
    before, after = mini.parameters_by_name(), loaded.parameters_by_name()
    other = [name for name in before if not torch.equal(before[name], after[name])]
    assert other == ["text.blocks.2.attn.weight"]
    assert bool((after[other[0]] == 1).all())


def test_a_backbone_of_which_nobody_has_the_config_is_refused(toy, tmp_path):
    with pytest.raises(HarnessError, match="cannot be written"):
        checkpoint.write(tmp_path, toy, {})

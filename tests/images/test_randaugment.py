"""RandAugment: its operations, and that a view depends on seed, epoch and position alone."""

from random import Random

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import functional as TF

from harness.images.randaugment import OPERATIONS, RandAugment
from harness.towers.pixels import Pixels


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = torch.randint(0, 256, (3, 224, 224), generator=torch.Generator().manual_seed(3))
    return TF.to_pil_image(pixels.byte())


def published(number: int, picture: Image.Image, value: float, draw: Random) -> Image.Image:
    """What the authors' operation of that number makes at strength 10, with its sign."""
    signed = -value if draw.random() > 0.5 else value
    moves = {11: (1, signed, 0, 0, 1, 0), 12: (1, 0, 0, signed, 1, 0),
             14: (1, 0, signed, 0, 1, 0), 15: (1, 0, 0, 0, 1, signed)}  # fmt: skip
    if number in moves:
        return picture.transform(picture.size, Image.Transform.AFFINE, moves[number])
    enhanced = {7: ImageEnhance.Color, 8: ImageEnhance.Contrast, 9: ImageEnhance.Brightness,
                10: ImageEnhance.Sharpness}  # fmt: skip
    if number in enhanced:
        return enhanced[number](picture).enhance(value)
    brighter = (TF.pil_to_tensor(picture).float() + value).clamp(0, 255).byte()
    return {
        0: lambda: ImageOps.autocontrast(picture),
        1: lambda: ImageOps.equalize(picture),
        2: lambda: ImageOps.invert(picture),
        3: lambda: picture.rotate(signed),
        4: lambda: ImageOps.posterize(picture, 5),
        5: lambda: ImageOps.solarize(picture, 86),  # below 85.3 is below 86
        6: lambda: ImageOps.solarize(TF.to_pil_image(brighter), 128),
    }[number]()


VALUES = (0.33, 0.33, 0.33, 10, 16 / 3, 256 / 3, 110 / 3, 0.7, 0.7, 0.7, 0.7, 0.1, 0.1, 40 / 3,
          100 / 3, 100 / 3)  # fmt: skip


@pytest.mark.parametrize("number", [each for each in range(16) if each != 13])
def test_an_operation_is_the_published_one_at_a_third_of_its_range(number, picture):
    operation, least, largest = OPERATIONS[number]
    value = least + 10 / 30 * (largest - least)
    assert value == pytest.approx(VALUES[number], abs=0.01)
    for seed in range(4):
        got = operation(picture, value, Random(seed))
        expected = published(number, picture, value, Random(seed))
        assert torch.equal(TF.pil_to_tensor(got), TF.pil_to_tensor(expected))


def test_cutout_greys_at_most_a_square_of_its_side(picture):
    operation, _, _ = OPERATIONS[13]
    got = TF.pil_to_tensor(operation(picture, 40 / 3, Random(2)))
    changed = (got != TF.pil_to_tensor(picture)).any(0)
    assert 0 < int(changed.sum()) <= 15**2
    assert {tuple(each.tolist()) for each in got[:, changed].T} == {(125, 123, 114)}
    small = picture.resize((56, 56))  # a quarter of the size, a quarter of the side
    changed = TF.pil_to_tensor(operation(small, 40 / 3, Random(2))) != TF.pil_to_tensor(small)
    assert 0 < int(changed.any(0).sum()) <= 5**2


def test_a_randaugment_view_depends_on_seed_epoch_and_position_alone(picture):
    wide = picture.resize((300, 200))
    augmentation, takes = RandAugment(), Pixels((48, 48), (0.5,) * 3, (0.5,) * 3)
    views = [
        augmentation(wide, takes, view, position)
        for view, position in (((1, 0), 5), ((1, 0), 5), ((1, 1), 5), ((1, 0), 6), ((1, 0, 1), 5))
    ]
    assert views[0].shape == (3, 48, 48)
    assert torch.equal(views[0], views[1])
    assert all(not torch.equal(views[0], other) for other in views[2:])

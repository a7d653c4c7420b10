"""Transforms are the field's, and a view depends on (seed, epoch, position) alone."""

import random
from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import to_pil_image

from harness.dataset import Classes
from harness.images.cache import Disk
from harness.images.pixels import Augmentation, FiveCrop, epoch_order, normalise, resized
from harness.images.source import ImageSource, train_batches
from harness.splits import class_names, select
from harness.towers.backbone import EMBEDDED
from harness.towers.pixels import Pixels
from tests.toy import NAMES


def picture(width: int = 90, height: int = 60) -> Image.Image:
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    return to_pil_image(pixels.to(torch.uint8))


def test_test_transform_equals_open_clips_preprocessing(mini):
    folder = f"local-dir:{EMBEDDED / 'emoji-mini'}"
    _, _, theirs = open_clip.create_model_and_transforms(folder, force_custom_text=True)
    of = mini.pixels.mean, mini.pixels.std
    for image in (picture(), picture(48, 100), picture(20, 20)):
        ours = normalise(resized(image, mini.pixels)[None], *of)[0]
        assert torch.equal(ours, theirs(image))


def test_a_view_depends_on_seed_epoch_and_position_alone(mini):
    image, augmentation, taken = picture(), Augmentation(), mini.pixels
    first = augmentation(image, taken, (1, 2), 3)
    assert torch.equal(first, augmentation(image, taken, (1, 2), 3))
    others = [augmentation(image, taken, *key) for key in (((0, 2), 3), ((1, 3), 3), ((1, 2), 4))]
    assert not any(torch.equal(first, other) for other in others)


def test_crops_are_distributed_like_torchvisions():
    augmentation, image = Augmentation(), picture(400, 300)
    transform = RandomResizedCrop(48)
    boxes = [augmentation._box(400, 300, random.Random(seed)) for seed in range(4000)]
    theirs = [transform.get_params(image, transform.scale, transform.ratio) for _ in range(4000)]
    for statistic in (
        lambda box: box[2] * box[3] / (400 * 300),
        lambda box: box[3] / box[2],
        lambda box: box[0] / 300,
        lambda box: box[1] / 400,
    ):
        values, reference = sorted(map(statistic, boxes)), sorted(map(statistic, theirs))
        assert values[0] >= min(reference) - 0.02
        assert values[2000] == pytest.approx(reference[2000], abs=0.03)
        assert values[-1] <= max(reference) + 0.02


def test_base_images_get_the_views_that_they_have_among_all_classes(plugins, mini):
    toy = plugins.plugins["datasets"]["toy"].cls()
    items = toy.read(None)["train"]
    classes = Classes("toy", tuple(class_names(items)), "")
    everything, new = (select(items, subset, classes) for subset in ("all", "new"))

    def views(split):
        order = [torch.arange(len(split.items))]
        source = ImageSource(toy, None)
        return next(train_batches(source, split, mini.pixels, Augmentation(), (1, 0), order))

    assert torch.equal(views(new), views(everything)[list(new.positions)])


def test_the_last_incomplete_batch_is_dropped():
    batches = epoch_order(304, 32, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [32] * 9
    assert len(torch.cat(batches).unique()) == 9 * 32


def test_fewer_images_than_a_batch_make_one_batch():
    assert [len(batch) for batch in epoch_order(80, 128, seed=1, epoch=0)] == [80]


def test_order_differs_between_epochs_and_seeds_and_repeats():
    orders = [torch.cat(epoch_order(64, 16, s, e)) for s, e in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert torch.equal(orders[0], orders[3])
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_pixels_come_in_order_across_chunks(plugins, monkeypatch, mini):
    pixels = replace(mini.pixels, size=(20, 20))
    monkeypatch.setattr("harness.images.source.GROUP", 3)
    toy = plugins.plugins["datasets"]["toy"].cls()
    items = toy.read(None)["test"][4:12]
    split = select(items, "all", Classes("toy", tuple(class_names(items)), "{}"))
    seen = torch.cat(list(ImageSource(toy, None).test(split, pixels)))
    expected = torch.stack([resized(toy.open(item, None), pixels) for item in items])
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("limit", [0, 60_000, 120_000, 10**9])  # a group has 27,000 bytes
@pytest.mark.parametrize("count", [3, 7, 8, 10])
def test_decoded_images_are_those_of_their_places_whatever_room_there_is(
    plugins, monkeypatch, tmp_path, limit, count
):
    monkeypatch.setattr("harness.images.source.GROUP", 3)
    toy = plugins.plugins["datasets"]["toy"].cls()
    items = toy.read(None)["train"][:60:6][:count]
    split = select(items, "all", Classes("toy", tuple(NAMES), "{}"))
    images = ImageSource(toy, None, Disk(tmp_path, limit)).opened(split)
    for place, item in enumerate(items):
        assert images[place].tobytes() == toy.open(item, None).tobytes(), place


@pytest.mark.parametrize("size", [(40, 40), (32, 48)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resizing", ["shortest", "longest", "squash"])
def test_every_resizing_equals_open_clips(resizing, interpolation, size):
    if resizing == "shortest" and size[0] != size[1]:
        interpolation = "bicubic"  # open_clip knows no other there
    pixels = Pixels(size, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1), resizing, interpolation, 7)
    theirs = image_transform(
        size, is_train=False, mean=pixels.mean, std=pixels.std, resize_mode=resizing,
        interpolation=interpolation, fill_color=7,
    )  # fmt: skip
    for image in (picture(), picture(50, 100), picture(20, 20), picture(61, 47)):
        ours = normalise(resized(image, pixels)[None], pixels.mean, pixels.std)[0]
        assert torch.equal(ours, theirs(image))


def test_training_views_have_the_size_and_interpolation_of_the_backbone(mini):
    image = picture()
    for augmentation, view in ((Augmentation(), (1, 0)), (FiveCrop(), (2,))):
        one, other = (
            augmentation(image, replace(mini.pixels, size=(32, 48), interpolation=each), view, 0)
            for each in ("bicubic", "bilinear")
        )
        assert one.shape == other.shape == (3, 32, 48)
        assert not torch.equal(one, other)


def test_images_of_one_resizing_are_not_taken_for_those_of_another(plugins, tmp_path, mini):
    toy = plugins.plugins["datasets"]["toy"].cls()
    items = toy.read(None)["test"][4:12]
    split = select(items, "all", Classes("toy", tuple(class_names(items)), "{}"))
    source = ImageSource(toy, None, Disk(tmp_path))
    changes = {"size": (20, 28)}, {"size": (20, 28), "resizing": "squash"}, {
        "size": (20, 28), "interpolation": "bilinear"}, {"size": (28, 20)}  # fmt: skip
    for change in changes:
        pixels = replace(mini.pixels, **change)
        (seen,) = source.test(split, pixels)
        assert torch.equal(seen[0], resized(toy.open(items[0], None), pixels))

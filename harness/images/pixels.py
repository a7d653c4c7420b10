"""Images to pixels: decoding, the field's two transforms, batches in a fixed order.

Images are uint8 [3, H, W] until they are on the device; `normalise` makes them what CLIP takes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from harness.randomness import generator, seed_of
from harness.towers.pixels import Pixels

View = tuple[int, ...]  # what distinguishes one pass over the images from another


@dataclass(frozen=True)
class Augmentation:
    """The training transform: random resized crop, then a horizontal flip half of the time.

    Source: Dassl transforms.py with CoOp's INPUT settings; the draws are torchvision's, but a
    function of (seed, epoch, position) and not of the order in which images are read.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    views: int = 0  # how many of each image there are; 0: as many as epochs

    def view(self, seed: int, epoch: int) -> View:
        """What an epoch's views depend on: fresh ones every epoch, or the next of the pool."""
        return (seed, epoch % self.views if self.views else epoch)

    def __call__(self, image: Image.Image, pixels: Pixels, view: View, position: int) -> Tensor:
        """A view of `image`, uint8 [3, H, W]."""
        draw = random.Random(seed_of("augmentation", *view, position))
        top, left, height, width = self._box(image.width, image.height, draw)
        box = top, left, height, width
        seen = TF.resized_crop(image, *box, [*pixels.size], interpolation(pixels))
        return TF.pil_to_tensor(TF.hflip(seen) if draw.random() < 0.5 else seen)

    def _box(self, width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * draw.uniform(*self.scale)
            ratio = math.exp(draw.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return draw.randint(0, height - h), draw.randint(0, width - w), h, w
        # no box fitted: the largest central one with an allowed ratio
        low, high = self.ratio
        w = round(min(width, height * high))
        h = round(min(height, width / low))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class FiveCrop:
    """Short side to the size, then one corner or the centre, the same for all images of an epoch:
    also where the test transform squashes images, which leaves no corners.

    Source: LFA, train-time transform (resize, FiveCrop), one crop drawn for each iteration.
    """

    def view(self, seed: int, epoch: int) -> View:
        """The epoch's crop: 0 to 3 the corners, 4 the centre."""
        return (random.Random(seed_of("crop", seed, epoch)).randrange(5),)

    def __call__(self, image: Image.Image, pixels: Pixels, view: View, position: int) -> Tensor:
        """Crop `view` of `image`, uint8 [3, H, W]."""
        crops = TF.five_crop(_covering(image, pixels), [*pixels.size])
        return TF.pil_to_tensor(crops[view[0]])


def resized(image: Image.Image, pixels: Pixels) -> Tensor:
    """The test transform, uint8 [3, H, W]: the short side to the size and a central crop, the long
    side to the size and the rest filled, or both sides squashed, as the backbone was trained."""
    if pixels.resizing == "squash":
        return TF.pil_to_tensor(TF.resize(image, [*pixels.size], interpolation(pixels)))
    if pixels.resizing == "longest":
        height, width = pixels.size
        ratio = max(image.height / height, image.width / width)
        whole = [round(image.height / ratio), round(image.width / ratio)]
        image = TF.resize(image, whole, interpolation(pixels))
        top, left = (height - whole[0]) // 2, (width - whole[1]) // 2
        sides = [left, top, width - whole[1] - left, height - whole[0] - top]
        return TF.pil_to_tensor(TF.pad(image, sides, fill=pixels.fill))
    return TF.pil_to_tensor(TF.center_crop(_covering(image, pixels), [*pixels.size]))


def _covering(image: Image.Image, pixels: Pixels) -> Image.Image:
    """The image as small as covers the size."""
    height, width = pixels.size
    if height == width:
        return TF.resize(image, [height], interpolation(pixels))
    ratio = min(image.height / height, image.width / width)
    whole = [round(image.height / ratio), round(image.width / ratio)]
    return TF.resize(image, whole, interpolation(pixels))


def interpolation(pixels: Pixels) -> TF.InterpolationMode:
    """How images are resized."""
    return TF.InterpolationMode(pixels.interpolation)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32, scaled to [0, 1], minus `mean`, over `std`."""
    statistics = torch.tensor([mean, std], device=pixels.device).view(2, 1, 3, 1, 1)
    return (pixels.float() / 255 - statistics[0]) / statistics[1]


def epoch_order(
    count: int,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = True,
    labels: Tensor | None = None,
) -> list[Tensor]:
    """The batches of an epoch: indices in a random order, the last incomplete one dropped.

    With fewer images than a batch takes, or a batch size of 0, one batch of all of them. With
    `labels` [count], on the CPU, each batch is of one class, in a random order; the images that no
    whole batch of their class takes make up batches together.

    Source: Dassl data_manager.py (RandomSampler, drop_last = len(data) >= batch_size).
    """
    order = torch.randperm(count, generator=generator("order", seed, epoch))
    batch_size = min(batch_size or count, count)
    if labels is not None:
        order = _by_class(order, labels, batch_size)
    batches = list(order.split(batch_size))
    if drop_last and len(batches[-1]) < batch_size:
        batches.pop()
    if labels is not None:
        mixed = torch.randperm(len(batches), generator=generator("batches", seed, epoch))
        return [batches[i] for i in mixed.tolist()]
    return batches


def _by_class(order: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """The indices so that their batches are of one class; last those that are left over."""
    whole, spare = list[Tensor](), torch.ones(len(order), dtype=torch.bool)
    for label in labels.unique():
        (places,) = (labels[order] == label).nonzero(as_tuple=True)
        places = places[: len(places) // batch_size * batch_size]
        whole.append(order[places])
        spare[places] = False
    return torch.cat([*whole, order[spare]])


def steps_per_epoch(count: int, batch_size: int, drop_last: bool = True) -> int:
    """How many batches `epoch_order` gives."""
    batch_size = min(batch_size or count, count)
    return count // batch_size if drop_last else math.ceil(count / batch_size)

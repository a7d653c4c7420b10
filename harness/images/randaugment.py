"""RandAugment: two operations of a list, of one strength, on the whole image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from harness.images.pixels import Augmentation, View, interpolation
from harness.randomness import seed_of
from harness.towers.pixels import Pixels

Operation = Callable[[Image.Image, float, Random], Image.Image]
PUBLISHED = 224  # the size that distances in pixels are meant for
GREY = (125, 123, 114)


def _signed(value: float, draw: Random) -> float:
    return -value if draw.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _translated(image: Image.Image, x: float, y: float) -> Image.Image:
    scale = image.width / PUBLISHED
    return _affine(image, 1, 0, x * scale, 0, 1, y * scale)


def _solarize_add(image: Image.Image, value: float, draw: Random) -> Image.Image:
    table = [min(255, int(level + value)) for level in range(256)] * 3
    return ImageOps.solarize(image.point(table), 128)


def _cutout(image: Image.Image, value: float, draw: Random) -> Image.Image:
    side, (width, height) = value * image.width / PUBLISHED, image.size
    x, y = draw.uniform(0, width), draw.uniform(0, height)
    left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
    image = image.copy()
    box = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(image).rectangle(box, GREY)
    return image


OPERATIONS: tuple[tuple[Operation, float, float], ...] = (  # and the least and largest value
    (lambda image, _, draw: ImageOps.autocontrast(image), 0, 1),
    (lambda image, _, draw: ImageOps.equalize(image), 0, 1),
    (lambda image, _, draw: ImageOps.invert(image), 0, 1),
    (lambda image, v, draw: image.rotate(_signed(v, draw)), 0, 30),
    (lambda image, v, draw: ImageOps.posterize(image, int(v)), 4, 8),
    (lambda image, v, draw: ImageOps.solarize(image, math.ceil(v)), 0, 256),
    (_solarize_add, 0, 110),
    (lambda image, v, draw: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    (lambda image, v, draw: ImageEnhance.Contrast(image).enhance(v), 0.1, 1.9),
    (lambda image, v, draw: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    (lambda image, v, draw: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
    (lambda image, v, draw: _affine(image, 1, _signed(v, draw), 0, 0, 1, 0), 0, 0.3),
    (lambda image, v, draw: _affine(image, 1, 0, 0, _signed(v, draw), 1, 0), 0, 0.3),
    (_cutout, 0, 40),
    (lambda image, v, draw: _translated(image, _signed(v, draw), 0), 0, 100),
    (lambda image, v, draw: _translated(image, 0, _signed(v, draw)), 0, 100),
)


@dataclass(frozen=True)
class RandAugment(Augmentation):
    """Both sides to the size, then `count` operations of strength `strength` / 30, no crop.

    Source: Dassl transforms/randaugment.py with the defaults of config/defaults.py; distances,
    there in pixels of 224, are in shares of the size.
    """

    count: int = 2
    strength: int = 10

    def __call__(self, image: Image.Image, pixels: Pixels, view: View, position: int) -> Tensor:
        """A view of `image`, uint8 [3, H, W]."""
        draw = Random(seed_of("augmentation", *view, position))
        image = TF.resize(image, [*pixels.size], interpolation(pixels))
        for operation, least, largest in draw.choices(OPERATIONS, k=self.count):
            image = operation(image, least + self.strength / 30 * (largest - least), draw)
        return TF.pil_to_tensor(image)

"""Views of the embedded emoji: a sprite, slightly moved, on a plain or two-colour background.

A view depends on the sprite and its key alone: its parameters come from the SHA-256 digest of
the key, and Pillow resamples with the same arithmetic everywhere.
"""

import hashlib

from PIL import Image, ImageDraw

SIZE = 64
TURN = 12  # degrees, either way
SCALE = (0.75, 1.15)
SHIFT = 0.1  # share of the side, either way
CONTRAST = {True: 110, False: 50}  # least distance in brightness from one-tone, other sprites


class Draw:
    """Numbers drawn one after the other from the digest of a key, sixteen at most."""

    def __init__(self, key: str) -> None:
        self.digest = hashlib.sha256(key.encode()).digest()
        self.position = 0

    def __call__(self, low: float, high: float) -> float:
        """The next number between low and high."""
        pair = self.digest[self.position : self.position + 2]
        self.position += 2
        return low + (high - low) * int.from_bytes(pair, "big") / 65535

    def colour(self) -> tuple[int, int, int]:
        """The next three numbers as a colour."""
        return int(self(0, 255)), int(self(0, 255)), int(self(0, 255))


def brightness(sprite: Image.Image) -> tuple[int, int]:
    """Mean brightness of the opaque pixels of a sprite, and their mean distance from it."""
    mask = sprite.getchannel("A").point(lambda value: 255 * (value > 127))
    counts = sprite.convert("RGB").convert("L").histogram(mask)
    total = max(1, sum(counts))
    mean = sum(level * count for level, count in enumerate(counts)) // total
    return mean, sum(abs(level - mean) * count for level, count in enumerate(counts)) // total


def away_from(colour: tuple[int, ...], level: int, distance: int) -> tuple[int, ...]:
    """A colour, made lighter or darker until it stands out from a brightness."""
    goal = 255 if level < 128 else 0
    for eighth in range(9):
        mixed = tuple((part * (8 - eighth) + goal * eighth) // 8 for part in colour)
        red, green, blue = mixed
        if abs((299 * red + 587 * green + 114 * blue) // 1000 - level) >= distance:
            break
    return mixed


def backdrop(first: tuple[int, ...], second: tuple[int, ...]) -> Image.Image:
    """A gradient from the top colour to the bottom colour."""
    image = Image.new("RGB", (SIZE, SIZE))
    pen = ImageDraw.Draw(image)
    for row in range(SIZE):
        pairs = zip(first, second, strict=True)
        mixed = tuple((a * (SIZE - 1 - row) + b * row) // (SIZE - 1) for a, b in pairs)
        pen.line((0, row, SIZE, row), fill=mixed)
    return image


def view(sprite: Image.Image, key: str) -> Image.Image:
    """The view of an RGBA sprite that belongs to a key."""
    draw = Draw(key)
    turn, side = draw(-TURN, TURN), round(SIZE * draw(*SCALE))
    left = (SIZE - side) // 2 + round(draw(-SHIFT, SHIFT) * SIZE)
    top = (SIZE - side) // 2 + round(draw(-SHIFT, SHIFT) * SIZE)
    first, other = draw.colour(), draw.colour()
    second = tuple((3 * a + b) // 4 for a, b in zip(first, other, strict=True))
    level, spread = brightness(sprite)
    distance = CONTRAST[spread < 24]
    image = backdrop(away_from(first, level, distance), away_from(second, level, distance))
    moved = sprite.rotate(turn, Image.Resampling.BICUBIC)
    moved = moved.resize((side, side), Image.Resampling.BICUBIC)
    image.paste(moved, (left, top), moved)
    return image

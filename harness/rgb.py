"""Encoded images to RGB: formats, transparency, more than eight bits a channel.

Needs numpy and pillow alone: an exported fit takes this file along.
"""

import contextlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()

# Rasters with a signature of their own. No documents, drawings or films: Ghostscript is never run.
RASTERS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI",
           "SGI", "TIFF", "WEBP")  # fmt: skip
SUFFIXES = frozenset(s for s, name in Image.registered_extensions().items() if name in RASTERS)
FORMATS = tuple(name for name in RASTERS if name in Image.OPEN)
WIDE = ("I", "F")  # and I;16, I;16B: more than eight bits a pixel
GREY_STEPS = {"L;2": 85, "L;4": 17}  # how Pillow spreads fewer bits over eight


def decoded(file: str | Path | IO[bytes], turn: bool) -> Image.Image:
    """The first picture in a file, as `to_rgb` gives it; with `turn` as its EXIF data says.

    Raises:
        Exception: of any kind, for what is no image or damaged.
    """
    with Image.open(file, formats=FORMATS) as image:
        raw = image.tile[0].args if image.tile else None
        kind = image.format
        if kind == "WEBP" and image.mode == "RGB" and getattr(image, "is_animated", False):
            image._mode = "RGBA"  # what the first picture does not cover is clear
            image.rawmode = "RGBA"  # type: ignore[attr-defined]
        return to_rgb(ImageOps.exif_transpose(image) if turn else image, kind, raw)


def to_rgb(image: Image.Image, kind: str | None = None, raw: Any = None) -> Image.Image:
    """RGB, on white where the image is transparent.

    Grey of 16 bits is divided by 257. Whole numbers of 32 bits are taken for eight bits if they are
    in 0..255 and for 16 if they are in 0..65535, fractions as they are if they are in 0..1 and for
    eight bits if they are in 0..255.

    Args:
        kind, raw: the format of the file and how it stores pixels, as Pillow says it.

    Raises:
        ValueError: other values, of which nobody knows what is black and what is white.
    """
    key = image.info.get("transparency")
    if image.mode.startswith(WIDE):
        grey = _eight_bits(image, kind)
        if isinstance(key, int):
            grey.paste(255, mask=Image.fromarray(np.asarray(image) == key))
        return grey.convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if raw in GREY_STEPS and isinstance(key, int):
        image.info["transparency"] = key * GREY_STEPS[raw]
    elif raw == "RGB;16B" and key:
        raise ValueError("16 bits a channel with a transparent colour; save it with 8 or with RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """Grey of more than eight bits, or of fractions, as mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return image.convert("I").point(lambda value: value / 257).convert("L")
    least, most = values.min(), values.max()
    if image.mode == "I" and min(least, 65535 - most) >= 0:
        return Image.fromarray((values // (257 if most > 255 else 1)).astype(np.uint8))
    if image.mode == "F" and min(least, 255 - most) >= 0:  # false for NaN
        return Image.fromarray(np.rint(values * (255 if most <= 1 else 1)).astype(np.uint8))
    raise ValueError(
        f"its values go from {least} to {most}; what is black and what is white is only known of "
        "0..255, 0..65535 and fractions 0..1"
    )

"""Image files to RGB, or the sentence that says why not."""

import io
from pathlib import Path

from PIL import Image

from harness.errors import HarnessError
from harness.files import reason, regular_file, shown
from harness.rgb import SUFFIXES, decoded

HEIC = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})


def open_rgb(path: Path, dataset: str, turn: bool = False) -> Image.Image:
    """The first picture in a file, RGB; with `turn` as its EXIF data says.

    Where it is transparent it shows white. Grey of 16 bits is scaled to eight; see `to_rgb`.

    Raises:
        HarnessError: it cannot be read as an image: missing, truncated, something else.
    """
    try:
        if not _is_text(path):
            raise ValueError("its name is not UTF-8")
        return decoded(regular_file(path), turn)
    except Exception as error:  # decoders raise all kinds
        raise _unreadable(path, dataset, error) from error


def rgb_of(encoded: bytes, path: str, dataset: str) -> Image.Image:
    """The same of the bytes of an image that is in no file of its own, upright.

    Raises:
        HarnessError: they cannot be read as an image.
    """
    try:
        return decoded(io.BytesIO(encoded), turn=True)
    except Exception as error:
        raise _unreadable(Path(path), dataset, error) from error


def _unreadable(path: Path, dataset: str, error: Exception) -> HarnessError:
    extra = HEIC if path.suffix.lower() in HEIC - SUFFIXES else ()
    hint = " It needs pillow-heif: pip install 'vlm-peft-harness[heic]'." if extra else ""
    return HarnessError(
        f"{dataset}: {shown(path)} cannot be read as an image: {shown(reason(error))}.{hint} "
        "`python -m harness data verify` finds every such file; --on-bad-image skip (in Python the "
        "setting engine.on_bad_image) leaves them out."
    )


def _is_text(path: Path) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))

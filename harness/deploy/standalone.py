"""Names images with the model in this folder: python predict.py IMAGE ...

Needs onnxruntime, numpy and pillow, and `rgb.py` beside it.
"""

import json
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
from PIL import Image

from harness.rgb import decoded

HERE = Path(__file__).parent
SIDE = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
CLASSES = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))
try:
    MODEL = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
except Exception as error:  # onnxruntime raises all kinds
    sys.exit(f"{HERE / 'model.onnx'} cannot be read: {error}")


def pixels(file: str | Path | IO[bytes]) -> Any:
    """What the model takes of an image [3, S, S]: on white where it is transparent, turned as its
    EXIF data says, resized as `preprocessing.json` says (the short side to S and the centre, or
    both sides to S), normalised."""
    image = decoded(file, turn=True)
    (high, wide), (width, height) = SIDE["size"], image.size
    if SIDE["resizing"] == "squash":
        width, height = wide, high
    else:
        short = min(image.size)
        width, height = int(wide * width / short), int(high * height / short)
    way = Image.Resampling[SIDE["interpolation"].upper()]
    image = image.resize((width, height), way)
    left, top = round((width - wide) / 2), round((height - high) / 2)
    values = np.asarray(image.crop((left, top, left + wide, top + high)), np.float32) / 255
    mean, deviation = np.array([SIDE["mean"], SIDE["std"]], np.float32)
    return ((values - mean) / deviation).transpose(2, 0, 1)


def named(images: list[Any], top: int = 5) -> list[list[tuple[str, float]]]:
    """The most probable classes of each image, with their probabilities among all classes."""
    (logits,) = MODEL.run(None, {"pixels": np.stack(images)})
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        [(CLASSES[label], float(row[label])) for label in labels]
        for row, labels in zip(shares, best, strict=True)
    ]


def shown(text: str) -> str:
    """The text without what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    failed = False
    for path in sys.argv[1:]:
        try:
            [[(name, probability)]] = named([pixels(path)], top=1)
            print(f"{shown(path)}\t{shown(name)}\t{probability:.4f}")
        except Exception as error:  # decoders raise all kinds
            failed = True
            print(f"{shown(path)} cannot be read: {shown(str(error))}", file=sys.stderr)
    sys.exit(failed)

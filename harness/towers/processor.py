"""What transformers does to images, by its preprocessor_config.json, in open_clip's words."""

from pathlib import Path
from typing import Any

import open_clip

from harness.errors import HarnessError
from harness.towers.weights import read_json

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # of older and newer versions
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # the numbers are Pillow's
TAKEN: dict[str, dict[str, Any]] = {
    "clip": {
        "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224,
        "image_mean": open_clip.OPENAI_DATASET_MEAN, "image_std": open_clip.OPENAI_DATASET_STD,
    },
    "siglip": {
        "size": {"height": 224, "width": 224}, "do_center_crop": False, "crop_size": 224,
        "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5),
    },
}  # fmt: skip
ALWAYS = {"resample": 3, "do_resize": True, "do_rescale": True, "do_normalize": True,
          "rescale_factor": 1 / 255}  # fmt: skip


def pixels(folder: Path, kind: str, size: int) -> dict[str, Any]:
    """What a processor's config says of images, as open_clip says it.

    Raises:
        HarnessError: there is none, or it does what no transform here does.
    """
    paths = [folder / name for name in PROCESSORS if (folder / name).is_file()]
    if not paths:
        raise HarnessError(
            f"{folder} has no {PROCESSORS[0]}: it must say how images are resized and normalised."
        )
    path = paths[0]
    given = read_json(path)
    said = ALWAYS | TAKEN[kind] | given.get("image_processor", given)
    edges, cropped = said["size"], said["crop_size"] if said["do_center_crop"] else None
    if isinstance(edges, int):
        edges = {"shortest_edge": edges} if kind == "clip" else {"height": edges, "width": edges}
    if isinstance(cropped, int):
        cropped = {"height": cropped, "width": cropped}
    square = {"height": size, "width": size}
    modes: dict[str, tuple[dict[str, int], list[Any]]] = {
        "shortest": ({"shortest_edge": size}, [square]),
        "squash": (square, [None, square]),
    }
    mode = [name for name, (of, crops) in modes.items() if edges == of and cropped in crops]
    steps = [name for name in ("do_resize", "do_rescale", "do_normalize") if said[name] is not True]
    interpolation = INTERPOLATIONS.get(said["resample"])
    if not mode or steps or interpolation is None or abs(said["rescale_factor"] * 255 - 1) > 1e-6:
        raise HarnessError(
            f"{path} resizes images to {edges}, crops {cropped}, interpolation {said['resample']}"
            f"{''.join(f', without {step}' for step in steps)}, factor {said['rescale_factor']}; "
            f"supported is {size} x {size} as the model takes it, by the short side and a centre "
            "crop or by both sides, bilinear (2) or bicubic (3), factor 1/255."
        )
    return {
        "mean": tuple(said["image_mean"]), "std": tuple(said["image_std"]),
        "interpolation": interpolation, "resize_mode": mode[0],
    }  # fmt: skip

"""A fitted model that is used by itself: images in, logits over its class names out."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness import config, registry
from harness.dataset import Classes
from harness.decoding import open_rgb
from harness.errors import HarnessError
from harness.files import reason, regular_file
from harness.fitting.inputs import image_features
from harness.fitting.model import Model, whole_float32
from harness.fitting.texts import Texts, text_features, texts
from harness.images.pixels import normalise, resized
from harness.method import HeadContext, method_code
from harness.records.store import Record, Store
from harness.rgb import to_rgb
from harness.towers import backbone as backbones
from harness.towers.openclip import Clip

Picture = str | Path | Image.Image


class FittedModel:
    """A method's fit on a backbone: class names, preprocessing, features and logits.

    run: what the fit depends on, as in the records of its runs.

    It computes in float32 whatever the run did: where that was bfloat16, as on CUDA unless
    --precision fp32 was given, logits are nearer to the arithmetic than the record's, and labels of
    images between two classes can be others.
    """

    def __init__(self, model: Model, run: Mapping[str, Any]) -> None:
        self.model, self.run = model, run
        self._known = dict[Classes, tuple[Texts, Tensor | None]]()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the fitted classes, in the order of the logits."""
        return self.model.classes.names

    def preprocess(self, image: Picture) -> Tensor:
        """What the image tower takes, [3, H, W]: resized as the backbone was trained (see
        `model.clip.pixels`), then normalised with its mean and deviation. Transparent
        parts are white, and images are turned as their EXIF data says.

        Raises:
            HarnessError: a path that cannot be read as an image.
        """
        taken = self.model.clip.pixels
        if isinstance(image, Image.Image):
            image = to_rgb(ImageOps.exif_transpose(image))
        else:
            image = open_rgb(Path(image), "load", turn=True)
        return normalise(resized(image, taken)[None], taken.mean, taken.std)[0]

    @torch.no_grad()
    @whole_float32()
    def features(self, images: Sequence[Picture] | Tensor) -> Tensor:
        """Image features [B, E], not normalised, of pictures or of what `preprocess` made of them
        ([B, 3, H, W]); [B, K, E] of a method that gives an image several."""
        clip = self.model.clip
        x = self._pixels(images).to(clip.device, clip.logit_scale.dtype)
        return image_features(self.model, self.model.prefix(clip.image, x))

    @torch.no_grad()
    @whole_float32()
    def logits(
        self, images: Sequence[Picture] | Tensor, class_names: Sequence[str] | None = None
    ) -> Tensor:
        """Logits [B, C] over the fitted classes, or over `class_names`.

        Raises:
            HarnessError: other class names, of a method that knows the fitted ones alone.
        """
        model, clip = self.model, self.model.clip
        classes = self.classes(class_names)
        pixels = self._pixels(images).to(clip.device, clip.logit_scale.dtype)
        image = self.features(pixels)
        seen = clip.image(pixels) if model.method.frozen_when_scored else None
        prompts, text = self.encoded(classes)
        given = HeadContext(
            clip.logit_scale.exp(), prompts.references, seen, fitted=classes == model.classes,
            numbers=model.classes.numbers(classes),
        )  # fmt: skip
        own = text_features(model, prompts, image) if text is None else text
        return model.output(image, own, given).logits

    def classes(self, class_names: Sequence[str] | None = None) -> Classes:
        """The fitted classes, or others by their names.

        Raises:
            HarnessError: no names, one that is given twice, or any of a method that knows the
                fitted classes alone.
        """
        fitted, method = self.model.classes, self.model.method
        if class_names is None or tuple(class_names) == fitted.names:
            return fitted
        names = checked_names(class_names)
        if method.only_fitted_classes:
            some = ", ".join(fitted.names[:5]) + ", ..." * (len(fitted.names) > 5)
            raise HarnessError(
                f"this fit's method classifies only the classes that it was fitted on: {some}"
            )
        return Classes(fitted.dataset, names, fitted.template, own=fitted.own)

    def encoded(self, classes: Classes) -> tuple[Texts, Tensor | None]:
        """The prompts of some classes, and their features [C, T, E], found once; no features where
        each image has its own."""
        if classes not in self._known:
            prompts = texts(self.model, classes, training=False)
            own = self.model.method.text_per_image
            self._known[classes] = prompts, None if own else text_features(self.model, prompts)
        return self._known[classes]

    def _pixels(self, images: Sequence[Picture] | Tensor) -> Tensor:
        if isinstance(images, Tensor):
            shape = self.model.clip.pixels.shape
            if images.dim() != 4 or images.shape[1:] != shape or not len(images):
                raise HarnessError(
                    f"a tensor of images must be [B, {', '.join(map(str, shape))}], as "
                    f"`preprocess` gives them, and not {list(images.shape)}."
                )
            return images
        if isinstance(images, (str, Path, Image.Image)):
            raise HarnessError(f"images must be a list: write [{images!r}] for a single one.")
        images = list(images)
        if not images:
            raise HarnessError("there are no images: the list is empty.")
        return torch.stack([self.preprocess(image) for image in images])


def checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names that a user gives.

    Raises:
        HarnessError: no names, one that is no text or is empty, or one that is given twice.
    """
    listed = isinstance(class_names, Collection) and not isinstance(class_names, str)
    if not listed or not len(class_names):
        raise HarnessError(f"class_names must be a list of names, not {class_names!r}.")
    wrong = [name for name in class_names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise HarnessError(f"class_names must be texts that are not empty, not {wrong[0]!r}.")
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise HarnessError(f"the class name {twice[0]!r} is given twice.")
    return tuple(class_names)


def load_fit(
    fit: Record | str | Path, plugins: Sequence[str | type], device: str | None
) -> FittedModel:
    """See `harness.load`."""
    path = _weights_of(fit)
    run, classes = kept(path)
    method = _restored(run["method"], run["hyperparameters"], plugins)
    if method_code(type(method)) != run["code"]:
        raise HarnessError(
            f"{path} was fitted with other code of {run['method']} than is here now. Fit it again, "
            "or go back to that code."
        )
    model = Model(clip_of(run, path, device), method, classes, int(run["seed"]))
    model.load(path)
    return FittedModel(model, run)


def kept(path: Path) -> tuple[dict[str, Any], Classes]:
    """What a file of weights says of its fit: what it depends on, and the fitted classes.

    Raises:
        HarnessError: it says nothing of one.
    """
    try:
        with safetensors.safe_open(str(regular_file(path)), "pt") as file:
            about = file.metadata() or {}
        run, classes = json.loads(about["run"]), json.loads(about["classes"])
        described = tuple(map(tuple, classes.get("descriptions", ())))
        found = Classes(
            classes["dataset"], tuple(classes["names"]), classes["template"],
            descriptions=described, own=bool(classes.get("own")),
        )  # fmt: skip
        for name in ("method", "hyperparameters", "code", "seed", "backbone"):
            run[name]
        texts_of = [run["method"], run["backbone"], run["fingerprints"]["weights"], *found.names]
        if not found.names or not all(isinstance(each, str) for each in texts_of):
            raise ValueError("it has names that are no texts")
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError) as error:  # fmt: skip
        said = f"it lacks {error}" if isinstance(error, KeyError) else reason(error)
        raise HarnessError(f"{path} does not hold a fit that can be loaded: {said}.") from error
    return run, found


def usual_device() -> str:
    """Where a fit runs if nobody says it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def clip_of(run: Mapping[str, Any], path: Path, device: str | None) -> Clip:
    """The backbone of the fit in a file.

    Raises:
        HarnessError: it is not here, or has other weights.
    """
    name, fingerprint = run["backbone"], run["fingerprints"]["weights"]
    clip = backbones.load(name, device or usual_device())
    if clip.fingerprint != fingerprint:
        raise HarnessError(
            f"{path} was fitted on other weights of {name} ({fingerprint}) than those that are "
            f"loaded ({clip.fingerprint})."
        )
    return clip


def _weights_of(fit: Record | str | Path) -> Path:
    """The file of weights of a record, or of its file."""
    if not isinstance(fit, (Record, str, Path)):
        raise HarnessError(
            f"load takes a record, its file, or a file of weights, not {type(fit).__name__}."
        )
    if not isinstance(fit, Record):
        path = Path(fit)
        if path.suffix != ".json":
            return path
        read = Store.read(path)
        if read is None:
            raise HarnessError(f"{path} is no readable record.")
        above = path.absolute().parents  # RESULTS/task/dataset/record, where nobody moved it
        fit, folder = read, above[min(2, len(above) - 1)]
    elif fit.folder is None:
        raise HarnessError("the record does not say where it was read: load it by its file.")
    else:
        folder = fit.folder
    if fit.fit is None:
        raise HarnessError(
            f"nothing was fitted in the run of {fit.run['method']} ({fit.status}), so that there "
            "are no weights to load."
        )
    path = Store(folder).weights(fit.fit)
    if not path.is_file():
        raise HarnessError(
            f"the weights {path} are not there. Run the same command again with --force."
        )
    return path


def _restored(name: str, fields: dict[str, Any], plugins: Sequence[str | type]) -> Any:
    """The method of that name with the recorded settings."""
    loaded = registry.load([each for each in plugins if isinstance(each, str)])
    classes = [each for each in plugins if isinstance(each, type)]
    if classes:
        loaded.find("methods", classes)  # they become known by their names
    (plugin,) = loaded.find("methods", name)
    return config.restore(plugin, fields)

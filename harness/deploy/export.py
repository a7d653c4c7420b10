"""A fit as a folder of its own, which is written only if it says what the fit says."""

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import registry, rgb
from harness.deploy import merging, peft_folder
from harness.deploy.calibration import prepared_of
from harness.deploy.card import Card
from harness.deploy.merging import NoSuchForm
from harness.deploy.network import Network, traced
from harness.errors import HarnessError, blaming
from harness.files import shown
from harness.fitting.fitted import FittedModel
from harness.fitting.texts import frozen_texts
from harness.images.cache import Cache
from harness.images.pixels import normalise, resized
from harness.method import CosineHead, HeadContext
from harness.methods.peft import Peft
from harness.randomness import generator
from harness.towers import backbone, checkpoint

IMAGES = 64  # that are compared
DIFFERENCE = 1e-4  # of logits up to LARGE, at most; of larger ones in proportion
LARGE = 100.0  # CLIP's scale of a cosine; at 500 float32 itself has steps of 3e-5
ONE_FILE = 2**30  # bytes of weights that an ONNX file holds itself; protobuf ends at 2**31
STANDALONE = Path(__file__).with_name("standalone.py")
Read = Callable[[Tensor], Tensor]  # what the written files make of images: logits


@dataclass(frozen=True)
class Compared:
    """Images [N, 3, S, S] as the image tower takes them, and where they are from."""

    pixels: Tensor
    source: str


def compared(
    fitted: FittedModel, dataset: str | None, root: Path | None, plugins: registry.Registry
) -> Compared:
    """Training images of the fit, spread over its classes; random pixels if they are not here.

    Args:
        dataset: what it was fitted on, as `run` takes it; None: by the name in the fit.
    """
    clip = fitted.model.clip
    try:
        prepared = prepared_of(fitted, dataset, root, plugins)
        items, source = prepared.train.items, prepared.source(prepared.train)
        spread = [items[i * len(items) // IMAGES] for i in range(IMAGES)]
        chosen = list(dict.fromkeys(spread))
        pixels = torch.stack([resized(source.open(item), clip.pixels) for item in chosen])
        said = f"{len(chosen)} training images of {prepared.fit.dataset}"
    except HarnessError:
        if dataset is not None:  # asked for by name
            raise
        size = (IMAGES, *clip.pixels.shape)
        pixels = torch.randint(256, size, generator=generator("export"), dtype=torch.uint8)
        said = f"{IMAGES} images of random pixels, since those of the fit are not here"
    return Compared(normalise(pixels, clip.pixels.mean, clip.pixels.std), said)


def export(fitted: FittedModel, form: str, out: Path, card: Card, images: Compared) -> float:
    """Writes a folder; returns by how much logits differ at most.

    Raises:
        HarnessError: the folder is there, the fit has no such form, or what was written says
            something else than the fit. Nothing is left then.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise HarnessError(f"{shown(out)} is there already. Give a new folder with --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise HarnessError(f"{shown(out)} cannot be made: {error.strerror}.") from error
    try:
        folder.chmod(0o755)
        try:
            read = FORMS[form](fitted, folder, images.pixels)
        except NoSuchForm as error:
            raise NoSuchForm(f"{error} Choose --form {_others(fitted, form)}.") from error
        _about(fitted, folder)
        difference = _difference(fitted, read, images.pixels, form)
        said = f"{images.source}: logits differ by at most {difference:.1e}, and no label differs"
        (folder / "README.md").write_text(card.text(form, said), encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors' are the owner's alone
        folder.replace(out)
    except OSError as error:
        raise HarnessError(f"{shown(out)} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return difference


def _others(fitted: FittedModel, form: str) -> str:
    """The forms that a fit has beside `form`, found by trying."""
    tried = {
        "merged": lambda: merging.merged(fitted.model),
        "classifier": lambda: merging.classifier(fitted),
    }
    found = list[str]()
    for form, attempt in tried.items():
        with contextlib.suppress(NoSuchForm):
            attempt()
            found.append(form)
    if isinstance(fitted.model.method, Peft) and form != "peft":
        found.append("peft")
    return ", ".join([*found, "onnx"]) + " or pt2"


def _about(fitted: FittedModel, folder: Path) -> None:
    """Writes class names and preprocessing."""
    pixels = fitted.model.clip.pixels.as_json()
    for name, value in (("classes", fitted.class_names), ("preprocessing", pixels)):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


@torch.no_grad()
def _difference(fitted: FittedModel, read: Read, pixels: Tensor, form: str) -> float:
    """The largest difference of logits, with batches of several sizes."""
    wanted = fitted.logits(pixels)
    made = torch.cat([read(part) for part in pixels.tensor_split([1, 4])])
    if made.shape != wanted.shape or not made.isfinite().all():
        raise HarnessError(f"the fit cannot be exported as {form}: {list(made.shape)} logits for "
                           f"{list(wanted.shape)}, or some that are not finite.")  # fmt: skip
    difference = float((made - wanted).abs().max())
    other = int((made.argmax(-1) != wanted.argmax(-1)).sum())
    most = DIFFERENCE * max(1.0, float(wanted.abs().max()) / LARGE)
    if difference > most or other:
        raise HarnessError(
            f"the fit cannot be exported as {form}: of {len(pixels)} images {other} would get "
            f"another label, and logits differ by up to {difference:.1e}, more than "
            f"{most:.0e} or enough to matter. Nothing was written."
        )
    return difference


def _merged(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    model = fitted.model
    checkpoint.write(folder, model.clip, merging.merged(model))
    prompts = model.method.prompts(model.classes)
    texts = dict(zip(fitted.class_names, prompts, strict=False))
    text = json.dumps(texts, indent=1, ensure_ascii=False) + "\n"
    (folder / "texts.json").write_text(text, encoding="utf-8")
    clip = backbone.load(f"local-dir:{folder}")
    features = frozen_texts(clip, prompts, Cache())
    given = HeadContext(clip.logit_scale.exp())
    return lambda images: CosineHead()(clip.image(images), features, given)


def _classifier(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    clip, path = fitted.model.clip, str(folder / "classifier.safetensors")
    about = {"backbone": clip.name, "fingerprint": clip.fingerprint}
    safetensors.torch.save_file(merging.classifier(fitted), path, about)
    kept = safetensors.torch.load_file(path)

    def read(images: Tensor) -> Tensor:
        features = F.normalize(clip.image(images), dim=-1)
        return F.linear(features, kept["weight"], kept.get("bias"))

    return read


@contextlib.contextmanager
def _tracing(fitted: FittedModel) -> Iterator[None]:
    """Meanwhile what the exporters say of their own inside is not shown; what they cannot trace is
    one sentence."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    with warnings.catch_warnings(), blaming(f"tracing {fitted.model.method.name}"):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _pt2(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    path = folder / "model.pt2"
    with _tracing(fitted):
        torch.export.save(traced(Network(fitted), pixels[:2]), path)
        return torch.export.load(path).module()


def _onnx(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise HarnessError(f"--form onnx needs {', '.join(missing)}: "
                           "pip install 'vlm-peft-harness[export]'.")  # fmt: skip
    takes = fitted.model.clip.pixels
    if takes.resizing == "longest" or (takes.resizing == "shortest" and len({*takes.size}) > 1):
        raise HarnessError(
            f"--form onnx: predict.py cannot resize images to {takes}. Choose --form pt2."
        )
    import onnxruntime

    path = folder / "model.onnx"
    with _tracing(fitted):
        program = traced(Network(fitted), pixels[:2])
        size = sum(each.nbytes for each in program.state_dict.values())
        torch.onnx.export(
            program, f=str(path), dynamo=True, verbose=False, input_names=["pixels"],
            output_names=["logits"], external_data=size > ONE_FILE,
            dynamic_shapes={"pixels": {0: "batch"}},
        )  # fmt: skip
    code = STANDALONE.read_text(encoding="utf-8").replace("from harness.rgb", "from rgb")
    (folder / "predict.py").write_text(code, encoding="utf-8")
    shutil.copyfile(rgb.__file__, folder / "rgb.py")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"pixels": images.numpy()})[0])


def _peft(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    model = fitted.model
    about = {"run": json.dumps(fitted.run), "classes": json.dumps(asdict(model.classes))}
    peft_folder.write(model, folder, about)
    return FittedModel(peft_folder.read(folder, model.clip, model.classes), {}).logits


FORMS: dict[str, Callable[[FittedModel, Path, Tensor], Read]] = {
    "merged": _merged, "classifier": _classifier, "onnx": _onnx, "pt2": _pt2,
    "peft": _peft,
}  # fmt: skip

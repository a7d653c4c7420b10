"""The forms of an exported fit: each writes its files into a folder, and reads them again."""

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rgb
from harness.deploy import merging, peft_folder
from harness.deploy.card import placeless
from harness.deploy.network import Network, traced
from harness.errors import HarnessError, blaming
from harness.fitting.fitted import FittedModel
from harness.fitting.texts import frozen_texts
from harness.images.cache import Cache
from harness.method import CosineHead, HeadContext
from harness.towers import backbone, checkpoint

ONE_FILE = 2**30  # bytes of weights that an ONNX file holds itself; protobuf ends at 2**31
STANDALONE = Path(__file__).with_name("standalone.py")
Read = Callable[[Tensor], Tensor]  # what the written files make of images: logits


def _merged(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    model = fitted.model
    checkpoint.write(folder, model.clip, merging.merged(model))
    prompts = model.method.prompts(model.classes)
    names = fitted.class_names
    texts = dict(zip(names, prompts, strict=False))  # others follow of some methods
    text = json.dumps(texts, indent=1, ensure_ascii=False) + "\n"
    (folder / "texts.json").write_text(text, encoding="utf-8")
    clip = backbone.load(f"local-dir:{folder}")
    features = frozen_texts(clip, prompts, Cache())
    given = HeadContext(clip.logit_scale.exp())
    return lambda images: CosineHead()(clip.image(images), features, given)


def _classifier(fitted: FittedModel, folder: Path, pixels: Tensor) -> Read:
    clip, path = fitted.model.clip, str(folder / "classifier.safetensors")
    about = {"backbone": placeless(clip.name), "fingerprint": clip.fingerprint}
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
    content = io.BytesIO()  # PyTorch's own writer ends the process where a disk is full
    with _tracing(fitted):
        torch.export.save(traced(Network(fitted), pixels[:2]), content)
    path = folder / "model.pt2"
    path.write_bytes(content.getbuffer())
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
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["pixels"], output_names=["logits"],
            dynamic_shapes={"pixels": {0: "batch"}},
        )  # fmt: skip
    assert made is not None  # as it is for the older exporter
    made.save(path, external_data=size > ONE_FILE)
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

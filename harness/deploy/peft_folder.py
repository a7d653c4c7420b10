"""Adapters as a folder in peft's own format: `adapter_config.json`, `adapter_model.safetensors`.

The modules that an adapter belongs to are named by sites, as `image.blocks.3.q`. peft itself makes
and reads the names of the weights; nothing of a folder is executed or unpickled.
"""

import contextlib
import dataclasses
import importlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.dataset import Classes
from harness.deploy.merging import NoSuchForm
from harness.errors import HarnessError, blaming
from harness.files import reason, regular_file, shown
from harness.fitting.fitted import FittedModel, checked_names, clip_of, kept, usual_device
from harness.fitting.model import Model
from harness.methods.peft import ADAPTER, HARMLESS, Peft
from harness.randomness import seed_of
from harness.towers import backbone as backbones
from harness.towers.openclip import Clip
from harness.towers.wrapped import Wrapped, tree, wrappable
from harness.towers.wrapped import shown as seen_by_peft

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ABOUT = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
         "inference_mode", "total_step")  # fmt: skip


def write(model: Model, folder: Path, about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes a fit of `peft` or `peft-*`. What peft would read again is compared with the fit.

    Args:
        about: texts that the file of weights holds beside them, as `load` needs them.

    Raises:
        NoSuchForm: another method, or a type whose weights peft's format does not hold whole.
        HarnessError: a folder that is not empty.
    """
    method = model.method
    if not isinstance(method, Peft):
        raise NoSuchForm(
            f"{method.name} is no layer of peft, so that there is no folder of peft's for it. "
            "Methods that have one are `peft` and `peft-*`."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HarnessError(f"{shown(folder)} is there already. Give a new or an empty folder.")
    config = method.parsed(method.iterations)
    whole = _whole(model.clip, config, method.towers)
    for site, layer in _layers(whole, model).items():
        frozen = {n: x for n, x in layer.state_dict().items() if n.startswith("base_layer.")}
        layer.load_state_dict(frozen | _edit(model, site).state_dict(), strict=True)
    state = _peft().get_peft_model_state_dict(whole, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: each.detach().cpu().contiguous().clone() for n, each in state.items()}
    known = {"format": "pt", "towers": method.towers, **about}
    save_file(tensors, folder / WEIGHTS, metadata=known)
    config.base_model_name_or_path, config.inference_mode = model.clip.name, True
    config.save_pretrained(str(folder))
    lost = _differences(model, folder)
    if lost:
        for name in (CONFIG, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        raise NoSuchForm(
            f"peft's format does not hold all of this {config.peft_type.value}: {lost}."
        )


def load(
    folder: Path, class_names: Sequence[str] | None, backbone: str | None, device: str | None
) -> FittedModel:
    """See `harness.load_peft`."""
    path, own = folder / WEIGHTS, "run" in _weights(folder)[1]
    if own and (class_names or backbone):
        raise HarnessError(
            f"{shown(folder)} says itself which classes and backbone it was fitted on: leave "
            "class_names and backbone out. `logits` takes other class names."
        )
    if own:
        run, classes = kept(path)
        return FittedModel(read(folder, clip_of(run, path, device), classes), run)
    if class_names is None or backbone is None:
        raise HarnessError(
            f"{shown(folder)} does not say which classes and backbone it was fitted on: give "
            "class_names and backbone."
        )
    classes = Classes("own", checked_names(class_names), "a photo of a {}.")
    return FittedModel(
        read(folder, backbones.load(backbone, device or usual_device()), classes), {}
    )


def read(folder: Path, clip: Clip, classes: Classes) -> Model:
    """The adapter of a folder on a backbone, as a fitted model of `peft`.

    Raises:
        HarnessError: files that are missing or damaged, a configuration that is not possible here,
            or weights of other modules than it asks for, with their names.
    """
    given, (state, about) = _config(folder), _weights(folder)
    named = {name.split(".")[2] for name in state if name.startswith("base_model.model.")}
    only = about.get("towers", named.pop() if len(named) == 1 else "both")
    only = only if only in ("image", "text") else "both"
    method = Peft(config=json.dumps(given), towers=only)  # type: ignore[arg-type]
    method.check()
    model = Model(clip, method, classes, seed=0)
    whole = _whole(clip, method.parsed(method.iterations), only)
    _check_names(
        folder, state, _peft().get_peft_model_state_dict(whole, save_embedding_layers=False)
    )
    with _quietly(), blaming(f"the weights in {shown(folder)}"):
        _peft().set_peft_model_state_dict(whole, state)
        for site, layer in _layers(whole, model).items():
            own = {n: x for n, x in layer.state_dict().items() if not n.startswith("base_layer.")}
            _edit(model, site).load_state_dict(own, strict=True)
    return model


def _peft(module: str = "peft") -> Any:
    """Imported where it is used: it takes seconds."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HarnessError(
            f"a folder of peft's needs the package peft ({error}): pip install "
            "'vlm-peft-harness[peft]'."
        ) from error


def _whole(clip: Clip, config: Any, towers: str) -> Any:
    """peft's own model over the modules of the towers, with its weights at their start."""
    chosen = [tower for tower in (clip.image, clip.text) if towers in ("both", tower.name)]
    shell = tree({s: seen_by_peft(op) for tower in chosen for s, op in wrappable(tower).items()})
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(seed_of("peft's folder"))  # not the run's: what is drawn must be saved
        return _peft().get_peft_model(shell, config, adapter_name=ADAPTER)


def _layers(whole: Any, model: Model) -> dict[str, nn.Module]:
    """peft's layers at the sites of a model's edits."""
    return {site: whole.base_model.model.get_submodule(site) for site in model.edits}


def _edit(model: Model, site: str) -> nn.Module:
    edit = model.edits[site]
    assert isinstance(edit, Wrapped)
    return edit.layer


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Meanwhile harmless warnings are not shown."""
    with warnings.catch_warnings():
        for each in HARMLESS:
            warnings.filterwarnings("ignore", each)
        yield


def _differences(model: Model, folder: Path) -> str:
    """Which edits or tensors are others when the folder is read; empty if none."""
    read_again = read(folder, model.clip, model.classes)
    again = read_again.trained.state_dict()
    lost = sorted(model.edits.keys() ^ read_again.edits.keys()) or [
        re.sub(r"^edits\.", "", name)
        for name, value in model.trained.state_dict().items()
        if not torch.equal(value, again[name].to(value))
    ]
    return ", ".join(lost[:3]) + ", ..." * (len(lost) > 3)


def _config(folder: Path) -> dict[str, Any]:
    """The settings that differ from peft's defaults, without what they say of the model."""
    path = folder / CONFIG
    try:
        given = json.loads(regular_file(path).read_text(encoding="utf-8"))
        kind = str(given["peft_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise HarnessError(
            f"{shown(path)} is no configuration of peft: {reason(error)}."
        ) from error
    cls = _peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    usual = {
        each.name: each.default_factory()
        if each.default_factory is not dataclasses.MISSING
        else each.default
        for each in (dataclasses.fields(cls) if cls else ())
    }
    left = {name: value for name, value in given.items() if name not in ABOUT}
    others = {name: value for name, value in left.items() if usual.get(name, ...) != value}
    return {**others, "peft_type": kind}


def _weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by their names in peft, and what else the file says."""
    path = folder / WEIGHTS
    if not (folder / CONFIG).is_file() and not path.exists():
        raise HarnessError(
            f"{shown(folder)} has no {WEIGHTS}: folders of peft alone can be loaded. "
            "The README.md of a folder that `export` wrote says how its form is used."
        )
    try:
        state = load_file(regular_file(path))
        with safetensors.safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise HarnessError(
            f"{shown(path)} cannot be read: {reason(error)}. Weights are read as safetensors alone."
        ) from error
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise HarnessError(f"{shown(path)}: {bad[0]} holds numbers that are not finite.")
    return state, about


def _check_names(folder: Path, given: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> None:
    """Raises HarnessError if a folder lacks weights, has others, or has some of another shape."""
    for what, names in (
        ("lacks", asked.keys() - given),
        ("has, beyond that,", given.keys() - asked),
    ):
        if names:
            some = ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3)
            raise HarnessError(
                f"{shown(folder)} does not fit its configuration on this backbone: it {what} "
                f"{some}."
            )
    for name, value in given.items():
        if value.shape != asked[name].shape:
            raise HarnessError(
                f"{shown(folder)}: {name} is {list(value.shape)}, and this backbone takes "
                f"{list(asked[name].shape)}."
            )

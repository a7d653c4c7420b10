"""Hugging Face peft: its layers at the sites of both towers."""

import contextlib
import dataclasses
import importlib
import json
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Site,
    Step,
    Views,
    adamw,
    blaming,
    cosine_decay,
    published,
    unknown,
    wrapped_layers,
)

ADAPTER = "default"  # peft's name of an adapter that has none
OWN = "needs a copy of the frozen weights of its own, and here they are shared"
DRAWS = "draws from the global generator, so that a gradient in micro-batches would be wrong"
NO_TYPE = {
    "PVERA": DRAWS,
    "LILY": "routes by a mean over the batch, so that a feature depends on its neighbours",
    "OSF": OWN,
    "GLORA": OWN,
    "FROD": "has one basis for all matrices of a name, and the towers differ in width",
}
NO_FIELD = {  # peft type ("": all), field: why it must keep its default
    ("", "bias"): "it would train the frozen towers' biases",
    ("", "modules_to_save"): "it would train copies of frozen modules",
    ("", "inference_mode"): "nothing would be trained",
    ("", "fan_in_fan_out"): "the towers' matrices are [out, in]",
    ("", "trainable_token_indices"): "the towers show no embedding to peft",
    ("", "target_parameters"): "sites are modules",
    ("", "layer_replication"): "the towers' blocks are fixed",
    ("", "use_qalora"): "the towers are not quantised",
    ("", "alora_invocation_tokens"): "it needs the tokens of a language model",
    ("", "use_asa"): "its schedule runs in peft's own training loop",
    ("", "save_only_topk_weights"): "weights are saved whole here",
    ("ADALORA", "total_step"): "it is the number of steps of the fit",
    ("LOHA", "rank_dropout"): DRAWS,
    ("LOHA", "module_dropout"): DRAWS,
    ("LOKR", "rank_dropout"): DRAWS,
    ("LOKR", "module_dropout"): DRAWS,
    ("BOFT", "boft_dropout"): DRAWS,
    ("OFT", "module_dropout"): DRAWS,
    ("BOFT", "boft_n_butterfly_factor"): "peft takes 1 for it where it cannot build CUDA code",
}
HARMLESS = (  # what peft and torch warn of: equality with peft on plain modules is tested
    "Unsupported layer type",
    "Failed to load the CUDA extension",
    "Setting boft_n_butterfly_factor to 1",
    "Sparse invariant checks",
)
PATTERNS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern",
            "block_size_pattern")  # fmt: skip


def _variant(peft_type: str, **settings: Any) -> dict[str, str]:
    return {"config": json.dumps({"peft_type": peft_type, **settings})}


def _peft(module: str = "peft") -> Any:
    """A module of peft, imported when a model is built: it takes seconds. By its name alone, so
    that the code of the method is this file wherever peft lies; its version is known beside it."""
    return importlib.import_module(module)


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """A layer-type method of Hugging Face peft (needs the extra [peft]).

        y' = layer(x),  layer = peft's layer of `config` around the frozen module at a site

    `config` is a configuration of peft as JSON, such as {"peft_type": "VERA", "r": 256}. Its
    `target_modules` are the sites' names (default: q, k, v and o of every block; ln1 and ln2 for
    LN_TUNING): a list of last parts, or a regular expression such as "image.blocks.(10|11).fc1".
    `layers_to_transform`, `rank_pattern` and the like work on these names, too.

    Source: https://github.com/huggingface/peft, with the paper that its documentation names for
        each type. The recipe is CLIP-LoRA's (https://arxiv.org/abs/2405.18541).
    Differs: the papers fit language models, with rates, ranks and steps of their own; the recipe of
        all types is this project's choice. Dropout is drawn from the run's seed and the step.
        AdaLoRA's orthogonality loss and budget are peft's; its schedule ends with the fit's last
        step.
    """

    requires: ClassVar[str] = "peft"
    by_name_only: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "peft-lora": _variant("LORA", r=4),
        "peft-rslora": _variant("LORA", r=4, use_rslora=True),
        "peft-dora": _variant("LORA", r=4, use_dora=True),
        "peft-adalora": _variant("ADALORA", init_r=4, target_r=2),
        "peft-vera": _variant("VERA", r=256),
        "peft-ia3": _variant("IA3", feedforward_modules=[]),
        "peft-oft": _variant("OFT", oft_block_size=4),
        "peft-boft": _variant("BOFT", boft_block_size=4),
        "peft-hra": _variant("HRA", r=4),
        "peft-loha": _variant("LOHA", r=4),
        "peft-lokr": _variant("LOKR", r=4),
        "peft-fourierft": _variant("FOURIERFT", n_frequency=1000, init_weights=True),
        "peft-waveft": _variant("WAVEFT", n_frequency=100),
        "peft-c3a": _variant("C3A", block_size=64, init_weights=True),
        "peft-miss": _variant("MISS", r=4),
        "peft-bone": _variant("MISS", r=4, init_weights="bat"),
        "peft-shira": _variant("SHIRA", r=4, random_seed=1),
        "peft-randlora": _variant("RANDLORA", r=32),
        "peft-road": _variant("ROAD", variant="road_1"),
        "peft-vblora": _variant("VBLORA", r=4, num_vectors=256, vector_length=256),
        "peft-delora": _variant("DELORA", r=4),
        "peft-gralora": _variant("GRALORA", r=4, gralora_k=2),
        "peft-hira": _variant("HIRA", r=4),
        "peft-psoft": _variant("PSOFT", r=4),
        "peft-unilora": _variant("UNILORA"),
        "peft-tinylora": _variant("TINYLORA"),
        "peft-deft": _variant("DEFT", r=4),
        "peft-beft": _variant("BEFT"),
        "peft-adamss": _variant("ADAMSS", r=4),
        "peft-peanut": _variant("PEANUT", r=4),
        "peft-supertuning": _variant("SUPERTUNING"),
        "peft-ln_tuning": _variant("LN_TUNING"),
    }

    config: str = published(_variant("LORA", r=4)["config"], "peft's defaults but for the rank")
    towers: Literal["both", "image", "text"] = published("both", "this project")
    lr: float = published(2e-4, "CLIP-LoRA run_utils.py")
    epochs: int = published(0, "not used: `iterations` counts")
    iterations: int = published(8000, "CLIP-LoRA run_utils.py, 500 for each shot")
    batch_size: int = published(32, "CLIP-LoRA run_utils.py")
    momentum: float = published(0.9, "CLIP-LoRA lora.py, AdamW's beta_1")
    weight_decay: float = published(1e-2, "CLIP-LoRA lora.py, AdamW")
    warmup_epochs: int = published(0, "CLIP-LoRA lora.py")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CLIP-LoRA run_utils.py: 500 iterations a shot."""
        return {"iterations": 500 * shots}

    def views(self) -> Views:
        return Views(drop_last=False)

    def steps(self, steps_an_epoch: int) -> int:
        return self.iterations

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        return cosine_decay(self.lr, step, total, floor=1e-6)

    def check(self) -> None:
        super().check()
        self.parsed(self.iterations)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        towers = [t for t in (clip.image, clip.text) if self.towers in ("both", t.name)]
        config = self.parsed(self.iterations)
        tuner = _peft().mapping.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        kind = _peft("peft.tuners.tuners_utils").BaseTunerLayer

        def build(tree: Any) -> None:
            tuner(tree, config, ADAPTER)
            for layer in (each for each in tree.modules() if isinstance(each, kind)):
                for other in (getattr(layer, name, None) for name in layer.other_param_names):
                    if isinstance(other, nn.Module):  # it trains, where peft moved it to a device
                        other.requires_grad_(False)

        with _whole(clip.device):
            return wrapped_layers(towers, build, kind)

    def step(self, step: Step) -> Tensor:
        loss, gradients = step.gradients(self.loss)
        if json.loads(self.config)["peft_type"] != "ADALORA":
            step.update(gradients)
            return loss
        tuner, model = self._adalora(step), _peft("peft.tuners.adalora").AdaLoraModel
        named = dict(step.parameters)
        with torch.enable_grad(), torch.autocast(loss.device.type, enabled=False):
            orthogonality = model.forward(tuner).loss
        added = torch.autograd.grad(orthogonality, [*named.values()], allow_unused=True)
        for name, more in zip(named, added, strict=True):
            mine = gradients[name]
            gradients[name] = mine if more is None else more if mine is None else mine + more
        step.update(gradients)
        model.update_and_allocate(tuner, step.number)
        return loss + orthogonality.detach()

    def _adalora(self, step: Step) -> Any:
        """What AdaLoRA's own code needs of its model: kept for the fit, which has one head."""
        kept = vars(step.head)
        if step.number == 0 or "adalora" not in kept:
            config, named = self.parsed(step.total), dict(step.parameters)
            zero = next(iter(named.values())).new_zeros(())
            model = types.SimpleNamespace(
                named_parameters=lambda: [*named.items()],
                forward=lambda: types.SimpleNamespace(loss=zero.clone()),
            )
            budget = _peft("peft.tuners.adalora").RankAllocator(model, config, ADAPTER)
            kept["adalora"] = types.SimpleNamespace(
                peft_config={ADAPTER: config}, trainable_adapter_name=ADAPTER, model=model,
                rankallocator=budget,
            )  # fmt: skip
        return kept["adalora"]

    def parsed(self, total: int) -> Any:
        """peft's configuration; AdaLoRA's schedule has `total` steps.

        Raises:
            HarnessError: it is no JSON, unknown to peft, or not possible here, with the reason.
        """
        given = _read(self.config)
        kind = given["peft_type"]
        allowed = sorted(
            {json.loads(each["config"])["peft_type"] for each in self.variants.values()}
        )
        if kind not in allowed and kind in _peft().PeftType.__members__:
            reason = NO_TYPE.get(kind, "is no layer that this project has checked")
            raise HarnessError(f"peft's {kind} {reason}. Allowed: {', '.join(allowed)}.")
        if kind not in allowed:
            raise unknown("peft_type", str(kind), allowed)
        cls = _peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
        if cls is None:
            raise HarnessError(
                f"the installed peft {_peft().__version__} has no {kind}: update it."
            )
        _check_fields(kind, given, cls)
        points = ["ln1", "ln2"] if kind == "LN_TUNING" else ["q", "k", "v", "o"]
        usual: dict[str, Any] = {"target_modules": points}
        if kind == "ADALORA":
            usual["total_step"] = total
        with blaming(f"peft with {self.config}"):
            config = cls(**usual | given)
        if kind == "ADALORA" and not 0 < config.target_r < config.init_r:
            raise HarnessError(
                f"AdaLoRA needs 0 < target_r < init_r, not {config.target_r} and {config.init_r}."
            )
        return config


def _read(text: str) -> dict[str, Any]:
    """The settings in JSON that are given for a layer of peft."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise HarnessError(f"peft.config is no JSON ({error}): {text!r}.") from error
    if not isinstance(given, dict) or "peft_type" not in given:
        raise HarnessError(
            'peft.config must be JSON such as {"peft_type": "VERA", "r": 256}, not ' + f"{text!r}."
        )
    return given


def _check_fields(kind: str, given: dict[str, Any], cls: type) -> None:
    """Raises HarnessError for settings that a type of peft does not have or that cannot be here."""
    known = {each.name: each for each in dataclasses.fields(cls)}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"setting of peft's {kind}", name, known)
        usual = known[name].default
        reason = NO_FIELD.get((kind, name)) or NO_FIELD.get(("", name))
        if reason and value != usual and value:
            raise HarnessError(f"{kind} with {name} = {value!r} is not possible here: {reason}.")
        if isinstance(value, dict) and name not in PATTERNS:
            raise HarnessError(f"{kind}: the nested settings of {name} are not possible here.")
        if name == "init_lora_weights" and value not in (True, False, "gaussian", "orthogonal"):
            raise HarnessError(
                f"{kind} with {name} = {value!r} is not possible here: such a start reads data or "
                f"{OWN}. Allowed: true, false, gaussian, orthogonal."
            )
        number = type(usual) in (int, float) and type(value) not in (int, float)
        if number or (type(usual) is bool and type(value) is not bool and "init" not in name):
            what = "a number" if number else "true or false"
            raise HarnessError(f"{kind}: {name} must be {what}, not {value!r}.")


@contextlib.contextmanager
def _whole(device: torch.device) -> Iterator[None]:
    """Meanwhile nothing is computed in less than single precision, and harmless warnings are not
    shown."""
    with torch.autocast(device.type, enabled=False), warnings.catch_warnings():
        for each in HARMLESS:
            warnings.filterwarnings("ignore", each)
        yield

"""Tiny random models, one of each kind of tower that open_clip can load."""

import open_clip
import timm
import torch
from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet

from harness.towers.backbone import EMBEDDED
from harness.towers.openclip import Clip

SQUASH = {
    "size": (160, 160), "mode": "RGB", "resize_mode": "squash", "interpolation": "bilinear",
    "fill_color": 0, "mean": (0.5, 0.4, 0.3), "std": (0.3, 0.25, 0.2),
}  # fmt: skip
OWN = {"image_size": 48, "patch_size": 16, "width": 48, "layers": 2, "head_width": 16}
WORDS = {"context_length": 24, "vocab_size": 3014, "width": 40, "heads": 2, "layers": 2}


def _timm(name: str, size: int = 160, **settings) -> dict:
    given = {"timm_pool": "", "timm_proj": "linear"} | settings
    return {"timm_model_name": name, "image_size": size, **given}


# what is changed of a timm trunk before it is used; two blocks are enough
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32}
TRUNKS = {
    "attention-pool": ("vit_base_patch16_siglip_224", {}),
    "average-pool": ("vit_base_patch16_siglip_gap_224", {}),
    "layer-scale": ("vit_base_patch16_224", {"init_values": 0.5, "global_pool": "token"}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28}),
    "eva": ("eva_giant_patch14_clip_224", {"img_size": 28, "mlp_ratio": 2.0}),
    "pe": ("vit_pe_core_tiny_patch16_384", {}),
    "postnorm": ("eva02_tiny_patch14_224", {"img_size": 28, "use_post_norm": True}),
}
IMAGES = {
    "convnext": _timm("test_convnext", timm_pool="avg"),
    "test_vit": _timm("test_vit", timm_pool="token"),
    "batch-norm": _timm("test_resnet", timm_pool="avg"),
}
TEXTS = {
    "bidirectional-last": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "eos": {"pool_type": "eos", "eos_id": 3013},
    "first": {"no_causal_mask": True, "pool_type": "first", "proj_type": "none", "width": 36,
              "heads": 3},
    "class": {"embed_cls": True, "context_length": 23},
}  # fmt: skip
ALL_SITES = ["attention-pool", "average-pool", "layer-scale", "test_vit"]
PARTS = ["eva02", "eva", "pe"]
FEATURES = ["convnext", "batch-norm", "postnorm", "resnet"]
IMAGE_KINDS = [*ALL_SITES, *PARTS, *FEATURES]
TEXT_KINDS = list(TEXTS)


def model(kind: str) -> CustomTextCLIP:
    """open_clip's model: one tower of the kind, the other open_clip's ViT or causal text."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision, words = IMAGES.get(kind, OWN), WORDS | TEXTS.get(kind, {})
        if kind in TRUNKS:
            vision = _timm("test_vit", timm_pool="token")
        made = CustomTextCLIP(embed_dim=36, vision_cfg=vision, text_cfg=words)
        if kind in TRUNKS:
            name, settings = TRUNKS[kind]
            trunk = timm.create_model(name, num_classes=0, **(SMALL | settings))
            made.visual.trunk, size = trunk, trunk.patch_embed.img_size[0]
            made.visual.image_size = (size, size)
            made.visual.head = torch.nn.Linear(trunk.num_features, 36)
        if kind == "resnet":
            made.visual = ModifiedResNet((1, 1, 1, 1), 36, heads=4, image_size=64, width=8)
        draws = torch.Generator().manual_seed(2)
        for parameter in made.parameters():  # where all start at one or zero, nothing would show
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.data += 0.05 * noise
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=draws)
    set_model_preprocess_cfg(made, SQUASH)
    return made.requires_grad_(False).eval()


def tokenizer():
    """The embedded backbone's."""
    merges = str(EMBEDDED / "emoji-mini" / "bpe_merges.txt.gz")
    return open_clip.get_tokenizer(f"local-dir:{EMBEDDED / 'emoji-mini'}", bpe_path=merges)


def load(kind: str) -> Clip:
    """The same weights as a backbone."""
    return Clip(model(kind), tokenizer(), kind)

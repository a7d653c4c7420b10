"""Tiny random models, one of each kind of tower that open_clip can load."""

import json
import tempfile
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer

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
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "average-pool": ("vit_base_patch16_siglip_gap_224", {}),
    "layer-scale": ("vit_base_patch16_224", {"init_values": 0.5, "global_pool": "token"}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28}),
    "eva": ("eva_giant_patch14_clip_224", {"img_size": 28, "mlp_ratio": 2.0}),
    "pe": ("vit_pe_core_tiny_patch16_384", {}),
    "postnorm": ("eva02_tiny_patch14_224", {"img_size": 28, "use_post_norm": True}),
}
IMAGES = {
    "convnext": _timm("test_convnext", 32, timm_pool="avg"),
    "test_vit": _timm("test_vit", timm_pool="token"),
    "batch-norm": _timm("test_resnet", 64, timm_pool="avg"),
}
TEXTS = {
    "bidirectional-last": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "eos": {"pool_type": "eos", "eos_id": 3013},
    "first": {"no_causal_mask": True, "pool_type": "first", "proj_type": "none", "width": 36,
              "heads": 3},
    "class": {"embed_cls": True, "context_length": 27},
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}  # fmt: skip
ALL_SITES = ["attention-pool", "average-pool", "layer-scale", "test_vit"]
PARTS = ["eva02", "eva", "pe"]
FEATURES = ["convnext", "batch-norm", "postnorm", "resnet"]
IMAGE_KINDS = [*ALL_SITES, *PARTS, *FEATURES]
HF_TEXTS = {  # of transformers, with the pooling and the projection of open_clip's pairs
    "hf-mean": (
        {"model_type": "xlm-roberta", "vocab_size": 3014, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
         "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        {"pooler_type": "mean_pooler", "proj_type": "mlp"},
    ),
    "hf-first": (
        {"model_type": "m2m_100", "vocab_size": 3014, "d_model": 32, "encoder_layers": 2,
         "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1,
         "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
        {"pooler_type": "cls_pooler", "proj_type": "linear"},
    ),
}  # fmt: skip
HF_KINDS = list(HF_TEXTS)
TEXT_KINDS = [kind for kind in TEXTS if kind not in TRUNKS]


def model(kind: str) -> CustomTextCLIP:
    """open_clip's model: one tower of the kind, the other open_clip's ViT or causal text."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision, words = IMAGES.get(kind, OWN), WORDS | TEXTS.get(kind, {})
        if kind in TRUNKS:
            vision = _timm("test_vit", timm_pool="token")
        size = 48 if kind == "siglip" else 36  # whose trunk has no projection
        made = CustomTextCLIP(embed_dim=size, vision_cfg=vision, text_cfg=words)
        if kind in TRUNKS:
            name, settings = TRUNKS[kind]
            trunk = timm.create_model(name, num_classes=0, **(SMALL | settings))
            made.visual.trunk, size = trunk, trunk.patch_embed.img_size[0]
            made.visual.image_size = (size, size)
            head = torch.nn.Linear(trunk.num_features, 36)
            made.visual.head = torch.nn.Identity() if kind == "siglip" else head
        if kind in HF_TEXTS:
            made.text = _hf_text(kind)
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


def _hf_text(kind: str) -> HFTextEncoder:
    config, how = HF_TEXTS[kind]
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "config.json").write_text(json.dumps(config))
        return HFTextEncoder(home, 36, pretrained=False, **how)


def hf_tokenizer(swapped: bool = False) -> HFTokenizer:
    """A tokenizer of transformers: a start, the letters, an end, then padding of id 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz.", " "]
    letters = letters[::-1] if swapped else letters
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    own = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        own.save_pretrained(home)
        return HFTokenizer(home, context_length=48)


def tokenizer():
    """The embedded backbone's."""
    merges = str(EMBEDDED / "emoji-mini" / "bpe_merges.txt.gz")
    return open_clip.get_tokenizer(f"local-dir:{EMBEDDED / 'emoji-mini'}", bpe_path=merges)


def load(kind: str) -> Clip:
    """The same weights as a backbone."""
    words = hf_tokenizer() if kind in HF_TEXTS else tokenizer()
    return Clip(model(kind), words, kind)

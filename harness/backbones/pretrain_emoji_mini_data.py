"""Pretraining data of the embedded backbone: captions, rendered icons, and batches of views.

Everything comes from the npm packages that the embedded emoji datasets come from, too.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from harness.backbones.pretrain_emoji_mini_views import random_views
from harness.tasks.datasets.emoji.build import CELL, PACKAGES, STYLES, read_style, render

EMOJI_STYLES = tuple(style for style, (side, _) in STYLES.items() if side == "pretraining")
UNUSED_EMOJI_STYLES = ("openmoji", "emojione-v1")
FLAG_SETS = ("circle-flags", "flag", "flagpack", "cif")
LICENCES = {
    *("MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "OFL-1.1", "Unlicense"),
    "BSD-3-Clause",
}
ONE_WAY_WORDS = {"left", "right", "arrow", "arrows", "button", "clockwise", "counterclockwise"}
EMOJI_SHARE = 0.6
STYLE_WORDS = {
    *("outline", "outlined", "fill", "filled", "rounded", "round", "sharp", "bold", "thin"),
    *("duotone", "line", "linear", "solid", "regular", "light", "twotone", "two", "tone", "broken"),
    *("baseline", "alt", "alternate", "variant", "icon", "icons", "emoji", "streamline", "remix"),
    *("flat", "mono", "bulk", "sm", "md", "lg", "xl", "xs", "small", "large", "medium", "flexible"),
}
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "an emoji of a {}.",
    "an image of {}.",
    "{}",
)


def emoji_words(work: Path) -> set[str]:
    """Words that occur in the names of the emoji standard, flags left out."""
    table = json.loads((work / "unicode" / "data-by-emoji.json").read_text(encoding="utf-8"))
    names = [entry["name"] for entry in table.values() if entry["group"] != "Flags"]
    return {word for name in names for word in caption_words(name)}


def written_names(work: Path) -> dict[str, str]:
    """Names of the emoji standard, with their hyphens and apostrophes, by caption."""
    table = json.loads((work / "unicode" / "data-by-emoji.json").read_text(encoding="utf-8"))
    names = [entry["name"].replace("’", "'") for entry in table.values()]
    return {" ".join(caption_words(name)): name for name in names}


def caption_words(name: str) -> list[str]:
    """Lower-cased words of an icon or emoji name."""
    plain = name.lower().replace("’", "'").replace("'", "")
    return re.findall(r"[^\W_]+", plain)


def icon_caption(name: str) -> str:
    """Name of an icon as a caption: words of style and size and all numbers are left out."""
    words = [word for word in caption_words(name) if not re.fullmatch(r"\d+(px|x\d+)?", word)]
    content = [word for word in words if word not in STYLE_WORDS]
    return " ".join(content or words)


def emoji_captions(name: str, aliases: list[str]) -> list[str]:
    """Captions of an emoji: its name and its aliases, without the numbers some sets append."""
    plain = [re.sub(r"-\d+$", "", entry) for entry in (name, *aliases)]
    return list(dict.fromkeys(" ".join(caption_words(entry)) for entry in plain))


def icon_sets(work: Path) -> dict[str, dict]:
    """Collections whose licence and subject permit their use, by name."""
    table = json.loads((work / "iconify" / "collections.json").read_text(encoding="utf-8"))
    refused = {*STYLES, *UNUSED_EMOJI_STYLES, *FLAG_SETS}
    chosen = {}
    for name, info in table.items():
        permitted = info["license"].get("spdx") in LICENCES
        subject = info.get("category") not in ("Logos", "Programming", "Emoji")
        brand = name.endswith("-brands") or name in refused
        if permitted and subject and not brand:
            chosen[name] = info
    return {name: table[name] for name in EMOJI_STYLES} | chosen


def set_records(name: str, data: dict) -> Iterator[tuple[str, list[str], dict]]:
    """Icon name, captions and drawing of every usable icon of one set."""
    aliases: dict[str, list[str]] = {}
    for alias, entry in data.get("aliases", {}).items():
        aliases.setdefault(entry["parent"], []).append(alias)
    for icon, entry in data["icons"].items():
        if name in EMOJI_STYLES:
            if "skin-tone" in icon or icon.startswith("flag-") or "regional" in icon:
                continue
            captions = [text for text in emoji_captions(icon, aliases.get(icon, [])) if text]
        else:
            captions = [icon_caption(icon)]
        if captions and captions[0]:
            yield icon, captions, entry


def render_set(job: tuple[Path, str]) -> tuple[str, list, int]:
    """Render one set to its own file; returns its manifest rows and the number of failures."""
    work, name = job
    data = read_style(work, name)
    rows, pixels, failures = [], [], 0
    for icon, captions, entry in set_records(name, data):
        try:
            image = np.asarray(render(data, entry))
        except (ValueError, OSError, RuntimeError):
            failures += 1
            continue
        if image.shape != (CELL, CELL, 4) or not image[..., 3].any():
            failures += 1
            continue
        colours = image[image[..., 3] > 127][:, :3]
        single = len(colours) == 0 or bool((np.ptp(colours, axis=0) < 24).all())
        rows.append([name, icon, captions, single])
        pixels.append(image)
    np.save(work / "parts" / f"{name}.npy", np.stack(pixels))
    return name, rows, failures


def render_all(work: Path, processes: int = 2) -> None:
    """Render every usable set into icons.npy, with one row of icons.json an image."""
    if (work / "icons.json").is_file():
        return
    (work / "parts").mkdir(exist_ok=True)
    names = list(icon_sets(work))
    largest_first = sorted(
        names, key=lambda name: -(work / "iconify/json" / f"{name}.json").stat().st_size
    )
    results = {}
    with Pool(processes) as pool:
        for name, rows, failures in pool.imap_unordered(
            render_set, [(work, name) for name in largest_first]
        ):
            results[name] = rows
            print(f"{name}: {len(rows)} icons, {failures} left out", flush=True)
    manifest = [row for name in names for row in results[name]]
    shape = (len(manifest), CELL, CELL, 4)
    pixels = np.lib.format.open_memmap(work / "icons.npy", "w+", np.uint8, shape)
    start = 0
    for name in names:
        part = work / "parts" / f"{name}.npy"
        pixels[start : start + len(results[name])] = np.load(part)
        start += len(results[name])
        part.unlink()
    pixels.flush()
    (work / "icons.json").write_text(json.dumps(manifest), encoding="utf-8")


def load_manifest(work: Path) -> list[tuple[str, str, list[str], bool]]:
    """Rows of icons.json: set, icon, captions, whether the icon has a single colour."""
    return json.loads((work / "icons.json").read_text(encoding="utf-8"))


def usable_rows(work: Path, manifest: list) -> tuple[list[int], list[int]]:
    """Rows of the emoji, and of the icons named by words that emoji names use too."""
    known = emoji_words(work)
    emoji = [i for i, row in enumerate(manifest) if row[0] in EMOJI_STYLES]
    icons = [
        i
        for i, row in enumerate(manifest)
        if row[0] not in EMOJI_STYLES and set(row[2][0].split()) <= known
    ]
    return emoji, icons


def describe_sets(work: Path) -> str:
    """A page in Markdown that lists every icon set, its licence, and how much of it is used."""
    manifest = load_manifest(work)
    emoji, icons = usable_rows(work, manifest)
    read = Counter(row[0] for row in manifest)
    used = Counter(manifest[row][0] for row in (*emoji, *icons))
    lines = [
        "# Icon sets behind emoji-mini",
        "",
        f"From the npm package `{'@'.join(PACKAGES['iconify'])}`. The names of all icons shaped",
        "the tokenizer; the icons in the last column trained the towers.",
        "",
        "| set | title | author | licence | icons | used |",
        "|---|---|---|---|---|---|",
    ]
    for name, info in icon_sets(work).items():
        author, licence = info["author"], info["license"]
        credit = f"[{author['name']}]({author['url']})" if "url" in author else author["name"]
        terms = f"[{licence['spdx']}]({licence['url']})" if "url" in licence else licence["spdx"]
        lines.append(
            f"| {name} | {info['name']} | {credit} | {terms} | {read[name]} | {used[name]} |"
        )
    lines.append(f"| {len(read)} sets | | | | {sum(read.values())} | {sum(used.values())} |")
    return "\n".join(lines) + "\n"


@dataclass
class SpritePool:
    """Sprites and captions the towers learn from; emoji come first."""

    sprites: Tensor
    single: Tensor
    may_flip: Tensor
    caption_rows: (
        Tensor  # caption numbers of each sprite, three columns, repeated where there are fewer
    )
    captions: list[str]
    weights: Tensor  # share of each sprite among the emoji or among the icons
    emoji: int

    def sample(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows and caption numbers of a batch of emoji and icons."""
        part = round(EMOJI_SHARE * number)
        first = torch.multinomial(self.weights[: self.emoji], part, replacement=True)
        second = torch.multinomial(self.weights[self.emoji :], number - part, replacement=True)
        rows = torch.cat([first, second + self.emoji])
        column = torch.randint(0, self.caption_rows.shape[1], (number, 1))
        return rows, self.caption_rows[rows].gather(1, column).squeeze(1)

    def views(self, rows: Tensor, size: int, strength: float = 1.0) -> Tensor:
        """Random views of some sprites, normalised."""
        pixels = random_views(
            self.sprites[rows], self.single[rows], self.may_flip[rows], size, strength
        )
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1)
            for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        return (pixels - mean) / std


def load_pool(work: Path) -> SpritePool:
    """Read the emoji, and the icons named by words that emoji names use too."""
    manifest = load_manifest(work)
    emoji, icons = usable_rows(work, manifest)
    names = {caption for i in emoji for caption in manifest[i][2]}
    chosen = emoji + icons
    captions = sorted({caption for i in chosen for caption in manifest[i][2]})
    number = {caption: index for index, caption in enumerate(captions)}
    counts = np.bincount([number[manifest[i][2][0]] for i in icons], minlength=len(captions))
    weights = [0.7 if manifest[i][0] == "emojione-monotone" else 1.0 for i in emoji]
    for i in icons:
        caption = manifest[i][2][0]
        weights.append((2.0 if caption in names else 1.0) / counts[number[caption]] ** 0.5)
    rows = [[number[caption] for caption in (manifest[i][2] * 3)[:3]] for i in chosen]
    pixels = np.load(work / "icons.npy", mmap_mode="r")
    return SpritePool(
        sprites=torch.from_numpy(pixels[chosen]),
        single=torch.tensor([manifest[i][3] for i in chosen]),
        may_flip=torch.tensor([not ONE_WAY_WORDS & set(manifest[i][2][0].split()) for i in chosen]),
        caption_rows=torch.tensor(rows),
        captions=captions,
        weights=torch.tensor(weights),
        emoji=len(emoji),
    )

"""Build the embedded emoji datasets: choose classes, render sprite sheets, write classes.json.

    python tasks/datasets/emoji/build.py --work DIR

The drawings come from two npm packages, which are fetched with `npm pack` into the work folder
when it lacks them. The result is the same, byte for byte, whenever the versions of resvg-py and
Pillow are the same.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
PACKAGES = {"iconify": ("@iconify/json", "2.2.535"), "unicode": ("unicode-emoji-json", "0.9.0")}
CELL = 64
COLUMNS = 25

# Style: the side it is on, and the variant it gives to a shifted test set.
STYLES = {
    "emojione": ("pretraining", None),
    "emojione-monotone": ("pretraining", None),
    "streamline-emojis": ("pretraining", None),
    "twemoji": ("shots", None),
    "noto": ("test", None),
    "noto-v1": ("test", None),
    "fluent-emoji-flat": ("shifted", "emoji_flat"),
    "fluent-emoji-high-contrast": ("shifted", "emoji_mono"),
    "fluent-emoji": ("shifted", "emoji_3d"),
    "fxemoji": ("shifted", "emoji_retro"),
}
BASIC_STYLES = ("twemoji", "noto", "noto-v1")
SHIFTED_STYLES = ("fluent-emoji-flat", "fluent-emoji-high-contrast", "fluent-emoji", "fxemoji")

# Dataset: its group in the emoji standard, its classes, and those it gives to the mixed source.
GROUPS = {
    "animals": ("Animals & Nature", 50, 32),
    "food": ("Food & Drink", 50, 28),
    "travel": ("Travel & Places", 50, 42),
    "objects": ("Objects", 50, 50),
    "activities": ("Activities", 46, 12),
    "smileys": ("Smileys & Emotion", 50, 10),
    "people": ("People & Body", 50, 10),
    "symbols": ("Symbols", 50, 16),
}

# Names that are left out: near duplicates, clocks, keycaps, plain shapes, writing.
LEFT_OUT = re.compile(
    r"keycap|japanese “|.*o’clock|.*-thirty|oncoming|family|couple|kiss (wo)?man|.* holding hands"
    r"|(wo)?men |people |bust|.*(left|right)-facing|backhand index pointing (left|right|down)"
    r"|globe showing (europe|asia)|(new|full|first quarter|last quarter) moon|(waxing|waning)"
    r"|sun behind (small|large)|(2nd|3rd) place|(yellow|green|blue|purple|black) heart$"
    r"|(black|white) (large|medium|medium-small|small) square$|(small|large) (orange|blue) diamond"
    r"|(red|blue|black|white) circle|hollow red circle|input|.* button \(blood type\)"
    r"|(up|down)-(left|right) arrow|(green|blue|orange) book|(closed|open) mailbox with lowered"
    r"|speaker (low|medium) volume|white (exclamation|question) mark|double curly loop"
    r"|(yen|euro|pound) banknote|magnifying glass tilted right|grinning face with (big|smiling)"
    r"|kissing face with|smiling face$|slightly frowning|frowning face with|hushed|anguished"
    r"|confounded|tired|disappointed|worried face|persevering|pensive|anxious|sad but|unamused"
    r"|front-facing|white flower|rosette|white square button|black square button|cooked rice"
    r"|mobile phone with arrow|last track|fast (up|down)|downwards button|left luggage"
    r"|person (blond|pouting)|(wo)?man blond|woman and man|cloud with lightning and rain"
    r"|umbrella with|umbrella$|snowman without|musical notes|computer disk|card index$"
    r"|red triangle|circled m|ng button|map of japan|derelict|cityscape at dusk|love hotel"
    r"|japanese post|railway track|middle finger|fork and knife with|tram car"
    r"|tram$|light rail|railway car"
)

# Drawings of fxemoji whose names differ from today's names, and traps where an equal name is
# another drawing (its "cat" is a cat face). Names that are in neither list match by their words.
FXEMOJI_NAMES = {
    "cat": "catside",
    "cat face": "cat",
    "dog": "dogside",
    "dog face": "dog",
    "mouse": "mouseside",
    "mouse face": "mouse",
    "pig": "pigside",
    "pig face": "pig",
    "tiger": "tigerside",
    "tiger face": "tiger",
    "cow face": "cowface",
    "leopard": "leopardside",
    "rabbit": "bunnyside",
    "rabbit face": "bunny",
    "wolf": "wolfface",
    "panda": "pandaface",
    "hamster": "hampster",
    "spouting whale": "spurtingwhale",
    "dove": "doveofpeace",
    "evergreen tree": "evergreen",
    "two-hump camel": "bactriancamel",
    "camel": "dromedarycamel",
    "dragon face": "dragonhead",
    "dragon": "dragonside",
    "ewe": "sheep",
    "fallen leaf": "fallingleaf",
    "leaf fluttering in wind": "leaffluttering",
    "sheaf of rice": "earofrice",
    "eggplant": "aubergine",
    "ear of corn": "earofmaize",
    "hot pepper": "chilipepper",
    "pizza": "sliceofpizza",
    "curry rice": "curryandrice",
    "fish cake with swirl": "fishcakeswirl",
    "sake": "sakebottleandcup",
    "kitchen knife": "hocho",
    "pile of poo": "poo",
    "skull and crossbones": "blackskullcrossbones",
    "see-no-evil monkey": "monkeysee",
    "hear-no-evil monkey": "monkeyhear",
    "speak-no-evil monkey": "monkeyspeak",
    "heart with arrow": "heartarrow",
    "heart with ribbon": "heartribbon",
    "folded hands": "pray",
    "clapping hands": "clap",
    "flexed biceps": "flexbicep",
    "Santa Claus": "fatherchristmas",
    "guard": "guardsman",
    "detective": "sleuthspy",
    "person surfing": "surfer",
    "person lifting weights": "weightlifter",
    "person getting haircut": "haircut",
    "person getting massage": "headmassage",
    "person wearing turban": "turban",
    "person biking": "bicyclist",
    "person golfing": "golfer",
    "person swimming": "swimming",
    "woman dancing": "dancer",
    "writing hand": "leftwritinghand",
    "scissors": "blackscissors",
    "telephone": "blacktelephone",
    "telephone receiver": "telephonereceiver2",
    "mobile phone": "cellphone",
    "laptop": "personalcomputer",
    "keyboard": "wiredkeyboard",
    "optical disk": "opticaldisc",
    "videocassette": "videocasette",
    "flashlight": "electrictorch",
    "red paper lantern": "izakayalantern",
    "backpack": "schoolsatchel",
    "man’s shoe": "mensshoe",
    "t-shirt": "mansshirt",
    "high-heeled shoe": "heels",
    "woman’s sandal": "sandals",
    "woman’s boot": "boot",
    "necktie": "tie",
    "gem stone": "gem",
    "sunglasses": "darksunglasses",
    "magnifying glass tilted left": "leftmagnifyingglass",
    "dollar banknote": "banknotedollar",
    "chart increasing": "chartupwardstrend",
    "chart decreasing": "chartdownwardstrend",
    "locked": "lock",
    "unlocked": "openlock",
    "locked with key": "lockandkey",
    "dagger": "daggerknife",
    "link": "linksymbol",
    "studio microphone": "studiomic",
    "spiral calendar": "spiralcalendarpad",
    "paintbrush": "lowerleftpaintbrush",
    "crayon": "lowerleftcrayon",
    "fountain pen": "lowerleftfountainpen",
    "outbox tray": "outbox",
    "mantelpiece clock": "manltepiececlock",
    "moai": "moyai",
    "police car light": "policecarsrevolvinglight",
    "castle": "europeancastle",
    "locomotive": "steamlocomotive",
    "bullet train": "highspeedtrainbulletnose",
    "racing car": "racecar",
    "sport utility vehicle": "recreationalvehicle",
    "beach with umbrella": "beachumbrella",
    "hourglass done": "hourglass",
    "hourglass not done": "hourglassflowingsand",
    "high voltage": "bolt",
    "snow-capped mountain": "snowmountains",
    "cloud with rain": "raincloud",
    "cloud with snow": "snowcloud",
    "globe showing Americas": "americasglobe",
    "globe with meridians": "meridianglobe",
    "sunset": "sunsetoverbuildings",
    "houses": "housebuildings",
    "wrapped gift": "present",
    "sparkler": "fireworksparkler",
    "basketball": "basketballandhoop",
    "tennis": "tennisball",
    "pool 8 ball": "billiards",
    "fishing pole": "fishingpoleandfish",
    "skis": "skiandskiboot",
    "spade suit": "blackspadesuit",
    "club suit": "blackclubsuit",
    "framed picture": "framewithpicture",
    "confetti ball": "confetti",
    "Sagittarius": "saggitarius",
    "Scorpio": "scorpius",
    "om": "omsymbol",
    "recycling symbol": "blackuniversalrecyclingsymbol",
    "warning": "warningsign",
    "no smoking": "nosmokingsymbol",
}
FXEMOJI_DOUBTFUL = {
    *(
        "fork and knife",
        "star",
        "dizzy",
        "mouth",
        "mouse face",
        "train",
        "bow and arrow",
        "sparkle",
    ),
    *("man", "woman", "boy", "girl", "ticket", "printer", "cancer", "page facing up", "restroom"),
}


def fetch_packages(work: Path) -> None:
    """Fetch and unpack the npm packages that the work folder lacks."""
    work.mkdir(parents=True, exist_ok=True)
    for folder, (package, version) in PACKAGES.items():
        if (work / folder).is_dir():
            continue
        packed = work / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
        if not packed.is_file():
            subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=work, check=True)
        partial = work / f"{folder}.partial"
        with tarfile.open(packed) as archive:
            archive.extractall(partial, filter="data")
        (partial / "package").rename(work / folder)
        partial.rmdir()


def read_style(work: Path, style: str) -> dict:
    """The icon set of one style."""
    path = work / "iconify" / "json" / f"{style}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def shuffled(names: list[str], salt: str) -> list[str]:
    """Names in an order fixed by a hash."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def icon_name(style: str, name: str) -> str:
    """Name under which a style would hold an emoji."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"[’']", "", name.lower()))
    if style != "fxemoji":
        return "-".join(words)
    return FXEMOJI_NAMES.get(name, "" if name in FXEMOJI_DOUBTFUL else "".join(words))


def find_icon(data: dict, name: str) -> dict | None:
    """The drawing of a name in an icon set, aliases followed."""
    changes: dict = {}
    while name in data.get("aliases", {}):
        alias = data["aliases"][name]
        changes |= {key: value for key, value in alias.items() if key != "parent"}
        name = alias["parent"]
    icon = data["icons"].get(name)
    return icon and icon | changes


def one_of_each_gender(names: list[str]) -> list[str]:
    """Keep one of "person", "woman" and "man" of a concept; the last two take turns."""
    kept = []
    for name in names:
        concept = re.sub(r"^(person|woman|man) ", "", name)
        if concept == name:
            kept.append(name)
        elif f"person {concept}" in names or concept in names:
            kept += [name] if name.startswith("person ") else []
        elif {f"woman {concept}", f"man {concept}"} <= set(names):
            first = shuffled(["woman", "man"], concept)[0]
            kept += [name] if name == f"{first} {concept}" else []
        else:
            kept.append(name)
    return kept


def choose_classes(work: Path, sets: dict[str, dict]) -> tuple[dict[str, list[str]], list[str]]:
    """Classes of the eight datasets and of the mixed source, in a shuffled order."""
    table = json.loads((work / "unicode" / "data-by-emoji.json").read_text(encoding="utf-8"))

    def drawn(name: str, styles: tuple[str, ...]) -> bool:
        return all(find_icon(sets[style], icon_name(style, name)) for style in styles)

    groups, source = {}, []
    for group, (heading, number, given) in GROUPS.items():
        names = [entry["name"] for entry in table.values() if entry["group"] == heading]
        names = [name for name in names if not LEFT_OUT.match(name.lower())]
        names = one_of_each_gender([name for name in names if drawn(name, BASIC_STYLES)])
        names = shuffled(names, "emoji")
        shared = [name for name in names if drawn(name, SHIFTED_STYLES)][:given]
        source += shared
        groups[group] = [name for name in names if name not in shared][:number]
        if len(shared) < given or len(groups[group]) < number:
            raise SystemExit(f"{group}: {len(shared)} + {len(groups[group])} classes only")
    return groups, shuffled(source, "source")


def render(data: dict, icon: dict) -> Image.Image:
    """One drawing as an RGBA cell."""
    try:
        import resvg_py
    except ImportError:
        raise SystemExit("Rendering needs resvg-py: pip install resvg-py") from None
    left, top, width, height = (
        icon.get(key, data.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    body = icon["body"].replace("currentColor", "#000000")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{CELL}" height="{CELL}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=CELL, height=CELL)
    cell = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return cell.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if icon.get("hFlip") else cell


def write_sheet(style: str, data: dict, names: list[str]) -> None:
    """Write the sprite sheet of one style."""
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, name in enumerate(names):
        icon = find_icon(data, icon_name(style, name))
        assert icon, f"{style} has no {name}"
        sheet.paste(render(data, icon), (index % COLUMNS * CELL, index // COLUMNS * CELL))
    (HERE / "sheets").mkdir(exist_ok=True)
    sheet.save(HERE / "sheets" / f"{style}.webp", quality=90, alpha_quality=100, method=6)


def display_name(name: str) -> str:
    """Name of a class as it is shown and put into prompts."""
    return name.replace("’", "'")


def main() -> None:
    """Build everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the npm packages")
    work = parser.parse_args().work
    fetch_packages(work)
    sets = {style: read_style(work, style) for style in STYLES}
    groups, source = choose_classes(work, sets)
    styles, cells = {}, {}
    for style, (side, variant) in STYLES.items():
        info = sets[style]["info"]
        styles[style] = {
            "side": side,
            "variant": variant,
            "licence": info["license"]["spdx"],
            "author": info["author"]["name"],
            "url": info["author"]["url"],
            "source": "@".join(PACKAGES["iconify"]),
        }
        if side == "pretraining":
            continue
        names = [*source, *(name for names in groups.values() for name in names)]
        names = source if side == "shifted" else names
        write_sheet(style, sets[style], names)
        cells[style] = {display_name(name): index for index, name in enumerate(names)}
    result = {
        "styles": styles,
        "columns": COLUMNS,
        "cell": CELL,
        "groups": {group: [display_name(n) for n in names] for group, names in groups.items()},
        "source": [display_name(name) for name in source],
        "cells": cells,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (HERE / "classes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

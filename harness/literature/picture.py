"""A picture of rectangles, lines, texts and images, as SVG and as PNG. It never imports torch."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

from harness.errors import HarnessError

INK, FAINT, GRID = "#1f2328", "#59636e", "#d1d9e0"
FONT = 'system-ui, "Segoe UI", Helvetica, Arial, sans-serif'
SHARP = 2  # pixels of the PNG for each unit
Point = tuple[float, float]


@dataclass
class Picture:
    """What was drawn, in order; x goes to the right, y down, a text's y is its baseline."""

    width: float
    height: float
    title: str
    shapes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A filled rectangle."""
        self.shapes.append(("rectangle", {"box": (x, y, width, height), "fill": fill}))

    def line(self, points: Sequence[Point], colour: str = GRID, thick: float = 1) -> None:
        """A line through points."""
        self.shapes.append(("line", {"points": points, "colour": colour, "thick": thick}))

    def image(self, x: float, y: float, side: float, image: Image.Image) -> None:
        """A square image."""
        self.shapes.append(("image", {"at": (x, y), "side": side, "image": image}))

    def text(
        self, x: float, y: float, words: object, size: float = 12, fill: str = INK,
        anchor: str = "start", upright: bool = False,
    ) -> None:  # fmt: skip
        """Words from (x, y); anchor: `start`, `middle` or `end`; upright: they run upwards, and end
        at (x, y)."""
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(words))
        shape = {"at": (x, y), "words": shown, "size": size, "fill": fill}
        self.shapes.append(("text", {**shape, "anchor": anchor, "upright": upright}))

    def save(self, folder: Path, name: str) -> list[Path]:
        """Writes NAME.svg and NAME.png; their paths.

        Raises:
            HarnessError: the folder cannot be written.
        """
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            svg.write_text(self.svg(), encoding="utf-8")
            self.png().save(png)
        except OSError as error:
            raise HarnessError(
                f"the pictures cannot be written to {folder} ({error.strerror}). Give another "
                "folder with --out."
            ) from error
        return [svg, png]

    def svg(self) -> str:
        """The picture as SVG text; images are part of it."""
        box = f"0 0 {self.width:g} {self.height:g}"
        root = ElementTree.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": box, "font-family": FONT}
        )
        ElementTree.SubElement(root, "title").text = self.title
        _element(root, "rect", width=self.width, height=self.height, fill="#ffffff")
        for kind, shape in self.shapes:
            if kind == "rectangle":
                x, y, width, height = shape["box"]
                _element(root, "rect", x=x, y=y, width=width, height=height, fill=shape["fill"])
            elif kind == "line":
                points = " ".join(f"{x:.6g},{y:.6g}" for x, y in shape["points"])
                stroke = {"stroke": shape["colour"], "stroke-width": shape["thick"]}
                _element(root, "polyline", points=points, fill="none", **stroke)
            elif kind == "image":
                x, y = shape["at"]
                data = base64.b64encode(_png_bytes(shape["image"])).decode()
                side = {"width": shape["side"], "height": shape["side"]}
                _element(root, "image", x=x, y=y, href=f"data:image/png;base64,{data}", **side)
            else:
                _svg_text(root, shape)
        ElementTree.indent(root, " ")
        return ElementTree.tostring(root, encoding="unicode")

    def png(self) -> Image.Image:
        """The picture as an image of pixels. Its font has Latin letters."""
        size = round(self.width * SHARP), round(self.height * SHARP)
        image = Image.new("RGB", size, "#ffffff")
        pen = ImageDraw.Draw(image)
        for kind, shape in self.shapes:
            if kind == "rectangle":
                x, y, width, height = (SHARP * value for value in shape["box"])
                if width >= 1 and height >= 1:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=shape["fill"])
            elif kind == "line":
                points = [(SHARP * x, SHARP * y) for x, y in shape["points"]]
                pen.line(points, fill=shape["colour"], width=round(SHARP * shape["thick"]))
            elif kind == "image":
                side = round(SHARP * shape["side"])
                where = tuple(round(SHARP * value) for value in shape["at"])
                image.paste(shape["image"].convert("RGB").resize((side, side)), where)
            else:
                _png_text(image, pen, shape)
        return image


def _svg_text(root: ElementTree.Element, shape: dict[str, Any]) -> None:
    x, y = shape["at"]
    given = {"font-size": shape["size"], "fill": shape["fill"]}
    anchor = "end" if shape["upright"] else shape["anchor"]
    given |= {"text-anchor": anchor} if anchor != "start" else {}
    given |= {"transform": f"rotate(-90 {x:.6g} {y:.6g})"} if shape["upright"] else {}
    _element(root, "text", x=x, y=y, **given).text = shape["words"]


def _png_text(image: Image.Image, pen: ImageDraw.ImageDraw, shape: dict[str, Any]) -> None:
    font = ImageFont.load_default(SHARP * shape["size"])
    x, y = (SHARP * value for value in shape["at"])
    if not shape["upright"]:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape["anchor"]]
        pen.text((x, y), shape["words"], fill=shape["fill"], font=font, anchor=anchor)
        return
    left, top, right, bottom = map(round, font.getbbox(shape["words"], anchor="ls"))
    size = max(1, right - left), max(1, bottom - top)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text((-left, -top), shape["words"], fill=255, font=font, anchor="ls")
    mask = mask.rotate(90, expand=True)  # its first letter is now at the bottom
    image.paste(shape["fill"], (round(x + top), round(y)), mask)


def _png_bytes(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _element(parent: ElementTree.Element, tag: str, **given: Any) -> ElementTree.Element:
    shown = {k: v if isinstance(v, str) else f"{v:.6g}" for k, v in given.items()}
    return ElementTree.SubElement(parent, tag, shown)

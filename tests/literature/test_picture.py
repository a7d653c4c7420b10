"""Pictures: the SVG parses whatever the texts are, and the PNG has the same size."""

from xml.etree import ElementTree

import pytest
from PIL import Image

from harness.errors import HarnessError
from harness.literature.figures import shade
from harness.literature.picture import SHARP, Picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(words="words"):
    picture = Picture(60, 40, "title")
    picture.rectangle(5, 5, 10, 10, "#ff0000")
    picture.text(5, 30, words)
    picture.text(50, 5, words, upright=True)
    picture.image(20, 5, 10, Image.new("RGB", (4, 4), "#0000ff"))
    return picture


@pytest.mark.parametrize("words", ["<script>&\"'", "a]]>b", "bell\x07", "\ud800", "", "日本"])
def test_any_text_gives_pictures_that_can_be_read(words, tmp_path):
    svg, png = drawn(words).save(tmp_path / "new", "name")
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    assert [each.text or "" for each in root.iter(f"{SVG}text")] == [shown, shown]
    with Image.open(png) as image:
        assert image.size == (60 * SHARP, 40 * SHARP)


def test_both_kinds_show_a_rectangle_and_an_image_at_the_same_place():
    picture = drawn()
    image = picture.png()
    assert image.getpixel((10 * SHARP, 10 * SHARP)) == (255, 0, 0)
    assert image.getpixel((25 * SHARP, 10 * SHARP)) == (0, 0, 255)
    root = ElementTree.fromstring(picture.svg())
    boxes = [(each.get("x"), each.get("fill")) for each in root.iter(f"{SVG}rect")]
    assert ("5", "#ff0000") in boxes
    assert next(root.iter(f"{SVG}image")).get("x") == "20"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="--out"):
        drawn().save(tmp_path / "file", "name")


def test_higher_values_are_lighter():
    span = [0.0, 1.0]
    brightness = [sum(bytes.fromhex(shade(v, span)[1:])) for v in (0.0, 0.3, 0.7, 1.0)]
    assert brightness == sorted(brightness)
    assert shade(3, [3, 3]) == shade(1, span)

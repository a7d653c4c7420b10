"""Image files to RGB: transparency, many bits a channel, and whatever else a file may be."""

import io
import os
import random
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from harness.decoding import open_rgb
from harness.errors import HarnessError
from harness.rgb import FORMATS

WHITE, RED = (255, 255, 255), (255, 0, 0)


def colours(path):
    """The set of colours that are read from a file."""
    return {colour for _, colour in open_rgb(path, "own").getcolors()}


def refusal(path):
    with pytest.raises(HarnessError) as caught:
        open_rgb(path, "own")
    return str(caught.value).partition(" `python")[0].replace(str(path), "FILE")


def half(mode, shown, clear):
    """Eight pixels of a colour, and eight of another."""
    image = Image.new(mode, (4, 4), shown)
    image.paste(clear, (0, 0, 4, 2))
    return image


def png(path, bits, kind, key, *rows, palette=b""):
    """A PNG written by hand: bits a channel, kind of colour, transparent colour and raw rows."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    width = 8 * len(rows[0]) // (bits * {0: 1, 2: 3, 3: 1}[kind])
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), chunk(b"PLTE", palette) if palette else b"",
             chunk(b"tRNS", key), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# Transparency


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (half("RGBA", (255, 0, 0, 255), (0, 9, 9, 0)), "x.png"),
        (half("RGBA", (255, 0, 0, 255), (0, 9, 9, 0)), "x.tif"),
        (half("RGBA", (255, 0, 0, 255), (0, 9, 9, 0)), "lossless.webp"),
    ],
    ids=["png", "tiff", "webp"],
)
def test_what_is_clear_shows_white_whatever_colour_it_hides(image, name, tmp_path):
    image.save(tmp_path / name, **({"lossless": True} if "lossless" in name else {}))
    assert colours(tmp_path / name) == {WHITE, RED}


def test_what_is_half_clear_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(tmp_path / "x.png")
    Image.new("LA", (4, 4), (0, 51)).save(tmp_path / "y.png")
    assert colours(tmp_path / "x.png") == {(255, 204, 204)}
    assert colours(tmp_path / "y.png") == {(204, 204, 204)}


def test_shapes_that_are_in_the_alpha_channel_alone_are_seen(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putalpha(half("L", 255, 0))
    image.save(tmp_path / "x.png")
    assert colours(tmp_path / "x.png") == {(0, 0, 0), WHITE}


@pytest.mark.parametrize("key", [1, bytes([255, 0])], ids=["one entry", "alpha of each"])
def test_a_clear_entry_of_a_palette_shows_white(key, tmp_path):
    image = half("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 9, 9])
    image.save(tmp_path / "x.png", transparency=key)
    assert colours(tmp_path / "x.png") == {WHITE, RED}


@pytest.mark.parametrize(
    ("bits", "kind", "key", "rows", "expected"),
    [
        (1, 0, b"\0\0", [b"\xaa"], {WHITE}),
        (1, 0, b"\0\1", [b"\xaa"], {WHITE, (0, 0, 0)}),
        (2, 0, b"\0\2", [b"\x1b"], {(0, 0, 0), (85, 85, 85), WHITE}),
        (4, 0, b"\0\7", [b"\x07\x7f"], {(0, 0, 0), WHITE}),
        (8, 0, b"\0\7", [b"\x00\x07\x46"], {(0, 0, 0), WHITE, (70, 70, 70)}),
        (16, 0, b"\1\2", [b"\x01\x02\x01\x03\xff\xff"], {WHITE, (1, 1, 1)}),
        (8, 2, b"\0\1\0\2\0\3", [b"\x01\x02\x03\xff\x00\x00"], {WHITE, RED}),
        (2, 3, b"\xff\xff\x00", [b"\x2a"], {RED, WHITE}),
    ],
)
def test_a_clear_colour_is_known_at_every_depth(bits, kind, key, rows, expected, tmp_path):
    palette = bytes([255, 0, 0, 9, 9, 9, 7, 7, 7]) if kind == 3 else b""
    assert colours(png(tmp_path / "x.png", bits, kind, key, *rows, palette=palette)) == expected


def test_a_clear_colour_of_16_bits_a_channel_is_refused(tmp_path):
    path = png(tmp_path / "x.png", 16, 2, b"\1\2\1\2\1\2", b"\1\2\1\2\1\2")
    assert refusal(path).startswith(
        "own: FILE cannot be read as an image: 16 bits a channel with a transparent colour"
    )


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_a_film_the_first_picture_is_seen_on_white(suffix, tmp_path):
    first, second = half("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), Image.new("RGBA", (4, 4), "blue")
    lossless = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"x.{suffix}", save_all=True, append_images=[second], **lossless)
    assert colours(tmp_path / f"x.{suffix}") == {WHITE, RED}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_opaque_image_has_the_bytes_that_pillow_gives(mode, tmp_path):
    noise = Image.effect_noise((16, 16), 90)
    image = Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]).convert(mode)
    image.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as expected:
        assert open_rgb(tmp_path / "x.tif", "own").tobytes() == expected.convert("RGB").tobytes()


# More than eight bits


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.uint16), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], ">u2"), [0, 100, 255]),
        (np.array([[0, 0.4, 1]], np.float32), [0, 102, 255]),
        (np.array([[0, 100.2, 255]], np.float32), [0, 100, 255]),
    ],
    ids=["int32 of 8", "int32 of 16", "uint16", "big-endian", "fractions", "float of 8"],
)
def test_numbers_are_scaled_as_they_say(values, expected, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    seen = np.asarray(open_rgb(tmp_path / "x.tif", "own"))
    assert seen[0, :, 0].tolist() == expected
    assert (seen[..., 0] == seen[..., 2]).all()


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 200]], np.int32),
        np.array([[0, 300.5]], np.float32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
    ],
)
def test_numbers_of_an_unknown_scale_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert "own: FILE cannot be read as an image: its values go from" in refusal(tmp_path / "x.tif")


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "x.png")
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 200, 255))
    assert colours(tmp_path / "x.png") == colours(tmp_path / "x.pgm") == {(0, 0, 0)}


# What is no image


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket.png"))
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "socket", "device"):
        says = "own: FILE cannot be read as an image: it is no regular file."
        assert refusal(tmp_path / f"{name}.png") == says
    listening.close()


def test_a_link_to_itself_and_a_name_that_no_file_has_cannot_be_read(tmp_path):
    (tmp_path / "x.png").symlink_to("x.png")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "x.png")
    assert "cannot be read" in refusal(tmp_path / "a\0.png")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_name_that_is_not_utf_8_is_refused_in_letters_that_can_be_printed(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("RGB", (2, 2)).save(os.fsdecode(path), "png")
    with pytest.raises(
        HarnessError, match=r"udcff\.png cannot .*: its name is not UTF-8"
    ) as caught:
        open_rgb(tmp_path / os.fsdecode(b"\xff.png"), "own")
    str(caught.value).encode()


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), TypeError("x"), KeyError])
def test_whatever_a_decoder_raises_names_the_file(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", fail)
    assert "own: FILE cannot be read as an image: " in refusal(tmp_path / "x.png")


def test_ctrl_c_passes_through_a_decoder(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        open_rgb(tmp_path / "x.png", "own")


def test_no_document_is_handed_to_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(text)
    assert "cannot identify image file" in refusal(tmp_path / "x.png")


def seeds():
    """A small file of each format, with transparency, EXIF and several pictures where it can be."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "tiny"
    noise = Image.effect_noise((9, 8), 90)
    found = []
    for name in FORMATS:
        for mode in ("RGBA", "P", "L", "I;16", "F"):
            file = io.BytesIO()
            extra = {"exif": exif} if name in ("JPEG", "PNG", "WEBP") else {}
            try:
                noise.convert("L").convert(mode).save(file, name, **extra)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # the format has no such mode, or none is written
            found.append(file.getvalue())
    return found


def mutated(content, draw):
    """A file with some bytes changed, cut or repeated."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(changed) or 1)
        what = draw.randrange(4)
        if what == 0:
            del changed[place:]
        elif what == 1:
            changed[place:place] = changed[place : place + draw.randint(1, 30)]
        else:
            changed[place : place + 1] = bytes([draw.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize(
    "count", [1_000, pytest.param(20_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it half understands
def test_a_damaged_file_gives_an_image_or_cannot_be_read(count, tmp_path):
    draw, files, path = random.Random(count), seeds(), tmp_path / "x.png"
    assert len(files) > len(FORMATS)
    read, refused = 0, []
    for number in range(count):
        path.write_bytes(mutated(files[number % len(files)], draw))
        try:
            assert open_rgb(path, "own", turn=number % 2 == 0).mode == "RGB"
            read += 1
        except HarnessError as error:
            refused.append(str(error))
    assert 0 < read < count
    assert all(each.startswith(f"own: {path} cannot be read as an image: ") for each in refused)

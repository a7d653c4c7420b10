"""`show` of a dataset: what it holds, at a glance."""

from PIL import Image

from harness.cli.commands import main


def tree(folder):
    for part, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("ant", "bee", "cow", "dog")):
            for image in range(count + number):
                path = folder / part / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (10 + image, 20), (number, image, len(part))).save(path)
    return folder


def test_show_prints_numbers_halves_prompts_and_sizes(tmp_path, capsys):
    template = ["--template", "a photo of a {}, an animal."]
    assert main(["show", f"folder:{tree(tmp_path / 'zoo')}", *template]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "train 18 4 3 4.5 6" in printed
    assert "test 14 4 2 3.5 5" in printed
    assert "4 classes: base 'ant' to 'bee' (2), new 'cow' to 'dog' (2)" in printed
    assert "a photo of a ant, an animal. | a photo of a bee, an animal. |" in printed
    assert "width 10 to 15" in printed


def test_show_prints_the_prompts_of_several_templates(tmp_path, capsys):
    templates = ["--template", "a {}.", "--template", "one {}."]
    assert main(["show", f"folder:{tree(tmp_path / 'zoo')}", *templates]) == 0
    printed = capsys.readouterr().out
    assert "templates: a {}. | one {}." in printed
    assert "prompts: a ant. | one ant. | a bee. | one bee. | " in printed


def test_show_counts_images_that_cannot_be_read_and_tells_copies(tmp_path, capsys):
    folder = tree(tmp_path / "zoo")
    (folder / "test" / "ant" / "0.png").write_bytes(b"no image")
    copied = (folder / "train" / "bee" / "0.png").read_bytes()
    (folder / "test" / "bee" / "0.png").write_bytes(copied)
    assert main(["show", f"folder:{folder}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 cannot be read" in printed
    assert "copies of 1 image of test are in train or val" in printed


def test_show_of_a_published_dataset_that_is_not_there_says_what_is_known(tmp_path, capsys):
    assert main(["show", "dtd", "--data-root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "licence: research only" in printed
    assert "published: 47 classes" in printed
    assert "dtd is expected in" in printed


def test_show_of_a_name_that_takes_a_path_describes_the_kind(capsys):
    assert main(["show", "folder"]) == 0
    assert "a folder a class" in capsys.readouterr().out

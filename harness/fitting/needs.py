"""What a method needs of a backbone, found where every site is there: on a small random CLIP."""

import functools
import re
from collections.abc import Iterable

from harness.dataset import Classes
from harness.errors import HarnessError
from harness.method import Method
from harness.randomness import initialising
from harness.towers.backbone import reference
from harness.towers.catalogue import Unloaded
from harness.towers.openclip import Clip
from harness.towers.tower import Site

CLASS_TOKEN = "image class token"
SUCH_AS = "emoji-mini or ViT-B-16-quickgelu:openai"


class _Asked(Clip):
    """A backbone that can do everything and notes what it is asked for beside its sites."""

    class_token_asked = False

    def check_class_token(self, method: str) -> None:
        self.class_token_asked = True


def kinds(sites: Iterable[Site]) -> frozenset[str]:
    """Sites without the numbers of their blocks: `image.blocks.*.q`."""
    return frozenset(re.sub(r"\.\d+", ".*", site) for site in sites)


def needed(method: Method, classes: Classes, clip: Clip | Unloaded) -> frozenset[str]:
    """The kinds of sites that a method changes with towers as deep as the backbone's, those in
    which it trains parameters, and `CLASS_TOKEN` if it makes features of single tokens."""
    cls = type(method)
    plain = cls.edits is Method.edits and cls.unfrozen is Method.unfrozen
    if plain and cls.head is Method.head:
        return kinds(method.needs)
    depths = len(clip.image.blocks) or 12, len(clip.text.blocks) or 12
    return kinds(method.needs) | _found(method, classes, depths, clip.embedding, clip.text.context)


@functools.lru_cache(maxsize=256)
def _found(
    method: Method, classes: Classes, depths: tuple[int, int], embedding: int, length: int
) -> frozenset[str]:
    clip = reference(depths, embedding, length, _Asked)
    assert isinstance(clip, _Asked)
    clip.class_token_asked = False
    with initialising(0):
        edits = method.edits(clip, classes)
    found = kinds(edits)
    return found | {CLASS_TOKEN} if clip.class_token_asked else found


def lacking(clip: Clip | Unloaded, method: Method, classes: Classes) -> list[str]:
    """What a method needs and a backbone lacks, in words or kinds of sites."""
    there = kinds(clip.sites()) | ({CLASS_TOKEN} if clip.image.class_token else set())
    if _everything() <= there:
        return []
    return sorted(needed(method, classes, clip) - there)


def check_needs(clip: Clip, method: Method, classes: Classes) -> None:
    """Raises HarnessError if a backbone lacks something that a method changes, so that no method
    runs by half, on one of its two towers."""
    missing = lacking(clip, method, classes)
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise HarnessError(
            f"{method.name} needs {shown}, which {clip.name} lacks: {described(clip, missing)}. "
            f"Choose a backbone such as {SUCH_AS}; `show MODEL:WEIGHTS` says which methods one "
            "carries."
        )


def check_both(clip: Clip, method: Method, chosen: Iterable[str]) -> None:
    """Raises HarnessError if a method that trains parameters of both towers of a CLIP finds those
    of one tower alone."""
    found = {name.partition(".")[0] for name in chosen}
    if type(method).unfrozen is Method.unfrozen or found >= {"image", "text"}:
        return
    depths = len(clip.image.blocks) or 12, len(clip.text.blocks) or 12
    usual = reference(depths, clip.embedding, clip.text.context, _Asked)
    missing = {name.partition(".")[0] for name in method.unfrozen(usual)} - found
    if missing:
        raise HarnessError(
            f"{method.name} trains parameters of the {' and '.join(sorted(missing))} tower, and "
            f"{clip.name} has none of the kind there. Choose a backbone such as {SUCH_AS}."
        )


@functools.cache
def _everything() -> frozenset[str]:
    """All kinds of sites, and a class token."""
    return kinds(reference((1, 1), 8, 8, _Asked).sites()) | {CLASS_TOKEN}


def described(clip: Clip, missing: Iterable[str]) -> str:
    """Why a backbone lacks something, in a clause."""
    image = [each for each in missing if each.startswith("image.")]
    if not len(clip.text.blocks) and not image:
        return "its text tower gives features alone"
    if "text.tokens" in missing and not image:
        return (
            "its texts do not begin with one start token and end with the largest token id, so "
            "that nothing can stand in for the words between"
        )
    if not image:
        return "its image feature is not made of a class token alone"
    if not len(clip.image.blocks):
        return "its image tower gives features alone"
    if image == ["image.tokens"]:
        return "its image tower rotates positions, so that no tokens can be added"
    return "the attention and the MLP of its image tower are not opened further"

"""What a method needs of a backbone, found where every site is there: on a small random CLIP."""

import functools
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from harness.dataset import Classes
from harness.errors import HarnessError
from harness.method import Method
from harness.randomness import initialising
from harness.towers.backbone import reference
from harness.towers.catalogue import Unloaded
from harness.towers.edit import Edit, Rows, SiteContext
from harness.towers.openclip import Clip
from harness.towers.tower import Site

CLASS_TOKEN, FIRST_TOKEN = "image class token", "a class token before all image tokens"
MORE_TOKENS = "tokens added between text blocks"
USUAL = 12, 512  # blocks, embedding
TOKENS = 32  # of a row on which an edit is tried; more than any method puts into it
PARAMETERS = "parameters of its kind in the"
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
    """The kinds of sites that a method changes with towers as deep as the backbone's, `CLASS_TOKEN`
    if it makes features of single tokens, and what `_beside_sites` finds of its edits."""
    cls = type(method)
    plain = cls.edits is Method.edits and cls.unfrozen is Method.unfrozen
    if plain and cls.head is Method.head:
        return kinds(method.needs)
    depths, length = _depths(clip), clip.text.context
    usual = min(depths[0], USUAL[0]), min(depths[1], USUAL[0])
    try:  # on towers that many backbones share: the kinds are those of deeper and wider ones
        asked = _found(method, classes, usual, USUAL[1], length)
    except HarnessError:
        asked = _found(method, classes, depths, clip.embedding, length)
    return kinds(method.needs) | asked


def _depths(clip: Clip | Unloaded) -> tuple[int, int]:
    """Image and text blocks of the CLIP that a backbone is compared with."""
    return len(clip.image.blocks) or 12, len(clip.text.blocks) or 12


@functools.lru_cache(maxsize=256)
def _found(
    method: Method, classes: Classes, depths: tuple[int, int], embedding: int, length: int
) -> frozenset[str]:
    clip = reference(depths, embedding, length, _Asked)
    assert isinstance(clip, _Asked)
    clip.class_token_asked = False
    with initialising(0):
        edits = method.edits(clip, classes)
        found = kinds(edits).union(*(_beside_sites(*each, clip) for each in edits.items()))
    return found | {CLASS_TOKEN} if clip.class_token_asked else found


def _beside_sites(site: Site, edit: Edit, clip: Clip) -> set[str]:
    """`FIRST_TOKEN` for an edit in a block of images that does something else to the first token
    than to the others: if it changes places with another, what leaves does not. `MORE_TOKENS` for
    one after a block of texts from which more tokens leave than entered."""
    parts, text = r"image\.blocks\.\d+\.(ln1|attn|ln2|mlp)", r"text\.blocks\.\d+"
    tower = next((t for t, form in ((clip.image, parts), (clip.text, text))
                  if re.fullmatch(form, site)), None)  # fmt: skip
    if tower is None:
        return set()
    x, y, stream = torch.randn(3, 8, TOKENS, tower.width)
    ids = torch.arange(TOKENS).expand(8, -1) if tower is clip.text else None
    usual = [*range(TOKENS)]
    first, last = [1, 0, *usual[2:]], [*usual[:-2], TOKENS - 1, TOKENS - 2]

    def left(order: list[int]) -> Tensor:
        rows = Rows(torch.arange(8), 8, training=False, key=(), ids=ids)
        at = SiteContext(site, tower.blocks[0], rows, TOKENS, stream[:, order])
        return edit(x[:, order], y[:, order], at)

    try:
        with torch.no_grad():
            plain = left(usual)
            if tower is clip.text:
                return {MORE_TOKENS} if plain.shape[1] > TOKENS else set()
            same = (torch.allclose(left(o)[:, o], plain, atol=1e-4) for o in (last, first))
            apart = next(same) and not next(same)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return set()  # it needs more than tokens: what it does wrong shows where it runs
    return {FIRST_TOKEN} if apart else set()


def lacking(clip: Clip | Unloaded, method: Method, classes: Classes) -> list[str]:
    """What a method needs and a backbone lacks, in words or kinds of sites."""
    can = {
        CLASS_TOKEN: clip.image.class_token,
        FIRST_TOKEN: clip.image.first_token,
        MORE_TOKENS: clip.text.pooling != "class",
    }
    there = kinds(clip.sites()) | {name for name, able in can.items() if able}
    missing = set() if _everything() <= there else needed(method, classes, clip) - there
    return sorted(missing) or _untrained(clip, method)


def _untrained(clip: Clip | Unloaded, method: Method) -> list[str]:
    """The towers in which a method trains parameters of a CLIP and finds none of the kind."""
    if type(method).unfrozen is Method.unfrozen:
        return []
    usual = reference(_depths(clip), clip.embedding, clip.text.context, _Asked)
    wanted = {name.partition(".")[0] for name in method.unfrozen(usual)}
    lost = {name for name in wanted if not len(getattr(clip, name).blocks)}
    try:
        found = {name.partition(".")[0] for name in method.unfrozen(clip)}  # type: ignore[arg-type]
    except HarnessError:
        if not lost:  # it asks for blocks that the backbone has too few of
            raise
        found = wanted - lost
    return [f"{PARAMETERS} {name} tower" for name in sorted(wanted - found)]


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


@functools.cache
def _everything() -> frozenset[str]:
    """All kinds of sites, and what else a method may need."""
    return kinds(reference((1, 1), 8, 8, _Asked).sites()) | {CLASS_TOKEN, FIRST_TOKEN, MORE_TOKENS}


def described(clip: Clip | Unloaded, missing: Iterable[str]) -> str:
    """Why a backbone lacks something, in a clause."""
    missing = list(missing)
    image = [each for each in missing if each.startswith("image.")]
    closed = [name for name in ("image", "text") if not len(getattr(clip, name).blocks)]
    if missing[0].startswith(PARAMETERS):
        return "it would be trained by half"
    if "text" in closed and not image and missing[0].startswith("text."):
        return "its text tower gives features alone"
    if "text.tokens" in missing and not image:
        return (
            "its texts do not begin with one start token and end with the largest token id, so "
            "that nothing can stand in for the words between"
        )
    if missing == [FIRST_TOKEN]:
        return "the method treats the first token of an image as its class token"
    if missing == [MORE_TOKENS]:
        return "its texts end with a class token, after which none can be added"
    if not image:
        return "its image feature is not made of a class token alone"
    if "image" in closed:
        return "its image tower gives features alone"
    if image == ["image.tokens"]:
        return "its image tower rotates positions, so that no tokens can be added"
    return "the attention and the MLP of its image tower are not opened further"

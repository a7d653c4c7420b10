"""Where the images of a split come from: decoded once, kept on disk, batched in a fixed order."""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from harness.dataset import Dataset, Item
from harness.errors import HarnessError
from harness.images.cache import Disk, Tensors, source_hash
from harness.images.pixels import Augmentation, FiveCrop, View, resized
from harness.rgb import FORMATS
from harness.splits import Split
from harness.towers.pixels import Pixels

THREADS = 8


PIXELS = (  # what the pixels of a view depend on
    "images/pixels", "images/source", "images/own", "images/randaugment", "dataset", "decoding",
    "randomness", "rgb",
)  # fmt: skip
GROUP = 250  # images that are decoded, and kept, together


T = TypeVar("T")


U = TypeVar("U")


@dataclass(frozen=True)
class ImageSource:
    """Where images come from: the dataset that opens them, its root, and the disk cache, if any."""

    dataset: Dataset
    root: Path | None
    disk: Disk | None = None
    _opened: dict[str, "DecodedImages"] = field(default_factory=dict, compare=False)

    def open(self, item: Item) -> Image.Image:
        """The decoded RGB image.

        Raises:
            HarnessError: it cannot be read, with its name.
        """
        image = self.dataset.open(item, self.root)
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            mode = getattr(image, "mode", None)
            what = f"an image of mode {mode!r}" if mode else f"{type(image).__name__}"
            raise HarnessError(
                f"{type(self.dataset).__name__}.open gave {what} for {item.path!r}; it must give "
                "RGB: harness.decoding.open_rgb does, and image.convert('RGB')."
            )
        return image

    def opened(self, split: Split) -> "DecodedImages":
        """The images of a split by index, each of them known to be readable.

        Raises:
            HarnessError: one is not, with its name.
        """
        if split.fingerprint not in self._opened:
            self._opened[split.fingerprint] = DecodedImages(self, split)
        return self._opened[split.fingerprint]

    def in_files(self) -> bool:
        """Whether the images are in files of their own, which may be damaged or missing."""
        return type(self.dataset).stamp is not Dataset.stamp

    def readable(self, item: Item) -> bool:
        """Whether an image can be opened."""
        try:
            self.open(item)
        except HarnessError:
            return False
        return True

    def unreadable(self, split: Split) -> dict[int, str]:
        """Why images cannot be read, by their place in the split; every one is opened."""

        def reason(item: Item) -> str:
            try:
                self.open(item)
            except HarnessError as error:
                return str(error)
            return ""

        found: dict[int, str] = {}
        with tqdm(total=len(split.items), desc=f"opening {split.classes.dataset}", unit="image",
                  leave=False, disable=None, delay=2) as bar:  # fmt: skip
            for number, group in enumerate(_groups(split.items)):
                reasons: list[str] = []

                def bad(items: Sequence[Item] = group, said: list[str] = reasons) -> Tensors:
                    said += _parallel(reason, items)
                    return {"x": torch.tensor([bool(each) for each in said])}

                flags = self.kept("readable", split, group, bad)["x"].nonzero().flatten().tolist()
                for place in flags:
                    why = reasons[place] if reasons else reason(group[place])
                    if why:  # it may be readable again
                        found[number * GROUP + place] = why
                bar.update(len(group))
        return found

    def test(self, split: Split, pixels: Pixels) -> Iterator[Tensor]:
        """Every image in order under the test transform, uint8 [<= GROUP, 3, H, W]."""

        def seen(items: Sequence[Item]) -> Tensor:
            def compute() -> Tensors:
                return {"x": torch.stack(_parallel(lambda i: resized(self.open(i), pixels), items))}

            return self.kept("pixels", split, items, compute, pixels.geometry)["x"]

        groups = [functools.partial(seen, each) for each in _groups(split.items)]
        yield from _ahead(groups)

    def kept(
        self,
        kind: str,
        split: Split,
        items: Sequence[Item],
        compute: Callable[[], Tensors],
        *key: Hashable,
    ) -> Tensors:
        """What `compute` makes of images, from the disk cache if there is one."""
        if self.disk is None:
            return compute()
        code = source_hash(*PIXELS)
        content = [(item.path, self.dataset.stamp(item, self.root)) for item in items]
        of = (code, PIL.__version__, FORMATS, repr(self.dataset), split.content, *content)
        return self.disk.get(kind, (*key, *of), compute)


class DecodedImages:
    """The decoded images of a split, by index: memory-mapped from the disk cache, or opened anew.

    Without a cache, or where it has no room, every image is opened once to see that it can be.
    """

    def __init__(self, source: ImageSource, split: Split) -> None:
        self.source, self.items = source, split.items
        self.groups: list[Tensors] = []
        groups, room = _groups(split.items), True
        with tqdm(total=len(split.items), desc=f"reading {split.classes.dataset}", unit="image",
                  leave=False, disable=None, delay=2) as bar:  # fmt: skip
            for group in groups:
                room = room and self._room(len(groups))
                if not room:  # for all of them or for none: a place is found by its group
                    self.groups.clear()
                    _parallel(lambda item: source.open(item) and None, group)
                else:
                    compute = functools.partial(self._decoded, group)
                    self.groups.append(source.kept("images", split, group, compute))
                bar.update(len(group))

    def __getitem__(self, index: int) -> Image.Image:
        if not self.groups:
            return self.source.open(self.items[index])
        group, place = self.groups[index // GROUP], index % GROUP
        height, width = group["sizes"][place].tolist()
        start = int(group["starts"][place])
        flat = group["x"][start : start + 3 * height * width]
        return Image.fromarray(flat.view(height, width, 3).numpy())

    def _room(self, count: int) -> bool:
        """Whether `count` groups like the first one may be kept."""
        disk = self.source.disk
        if disk is None or disk.limit <= 0:
            return False
        return not self.groups or self.groups[0]["x"].nbytes * count <= disk.limit // 2

    def _decoded(self, group: Sequence[Item]) -> Tensors:
        images = _parallel(lambda item: np.array(self.source.open(item)), group)
        sizes = torch.tensor([image.shape[:2] for image in images])
        lengths = torch.tensor([image.size for image in images])
        x = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
        return {"x": x, "sizes": sizes, "starts": lengths.cumsum(0) - lengths}


def no_image_left(dataset: str, part: str, name: str, path: str) -> HarnessError:
    """That no image of a class can be read, such as the one at `path`."""
    return HarnessError(
        f"{dataset}: none of the {part} images of the class {name!r} can be read, such as "
        f"{path!r}. Repair them: --on-bad-image skip would leave the class without images."
    )


def _groups(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + GROUP] for start in range(0, len(items), GROUP)]


def _parallel(function: Callable[[T], U], values: Sequence[T]) -> list[U]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, values))


def _ahead(thunks: Sequence[Callable[[], T]]) -> Iterator[T]:
    """The results in order, each computed while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(thunks[0]) if thunks else None
        for thunk in [*thunks[1:], None]:
            if following is not None:
                current, following = following, pool.submit(thunk) if thunk else None
                yield current.result()


def test_batches(
    source: ImageSource, split: Split, pixels: Pixels, batch_size: int
) -> Iterator[Tensor]:
    """Every image of a split in order under the test transform, uint8 [B, 3, H, W]."""
    for images in source.test(split, pixels):
        yield from images.split(batch_size)


def train_batches(
    source: ImageSource,
    split: Split,
    pixels: Pixels,
    augmentation: Augmentation | FiveCrop,
    view: View,
    order: Sequence[Tensor],
) -> Iterator[Tensor]:
    """One pass over the views, uint8 [B, 3, H, W], batched as `order` says."""
    images = source.opened(split)

    def seen(index: int) -> Tensor:
        return augmentation(images[index], pixels, view, split.positions[index])

    with ThreadPoolExecutor(THREADS) as pool:
        indices = [int(index) for batch in order for index in batch]
        views = (
            each
            for start in range(0, len(indices), GROUP)
            for each in pool.map(seen, indices[start : start + GROUP])
        )
        for batch in order:
            yield torch.stack(list(itertools.islice(views, len(batch))))

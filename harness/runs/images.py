"""Images that cannot be read are found once, before the first fit."""

from collections.abc import Sequence
from dataclasses import replace

from harness.dataset import Item
from harness.errors import HarnessError
from harness.images.source import ImageSource
from harness.records.tables import image_count
from harness.runs.prepared import PreparedRun
from harness.splits import Split


def check_images(runs: Sequence[PreparedRun]) -> None:
    """Opens every image file that the runs are fitted or scored on, each once; with a disk cache
    only those that have changed since.

    Raises:
        HarnessError: some cannot be read, with the name of each and why.
    """
    needed: dict[str, tuple[ImageSource, Split, dict[str, Item]]] = {}  # by dataset
    for run in runs:
        if run.refusal:
            continue
        for split in (run.train, *([run.val] if run.val else []), *run.evaluated.values()):
            first = (run.source(split), split, dict[str, Item]())
            _, _, items = needed.setdefault(split.classes.dataset, first)
            items.update((item.path, item) for item in split.items)
    bad: dict[str, None] = {}
    for source, split, items in needed.values():
        if source.in_files():
            some = tuple(items[path] for path in sorted(items))
            every = replace(split, items=some, positions=tuple(range(len(some))))
            bad |= dict.fromkeys(source.unreadable(every).values())
    if bad:
        each = [reason.partition(" `python -m harness")[0] for reason in bad]
        raise HarnessError(
            "\n".join([f"{image_count(len(each))} cannot be read; nothing was run.", *each])
            + "\nRepair or remove them, or leave them out with --on-bad-image skip "
            "(in Python the setting engine.on_bad_image)."
        )

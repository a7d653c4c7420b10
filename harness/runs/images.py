"""Images that cannot be read are found once, before the first fit."""

from collections.abc import Sequence

from harness.errors import HarnessError
from harness.runs.context import PreparedRun


def check_images(runs: Sequence[PreparedRun]) -> None:
    """Opens every image file that the runs are fitted or scored on, each once; with a disk cache
    only those that have changed since.

    Raises:
        HarnessError: some cannot be read, with the name of each and why.
    """
    splits = {
        split.fingerprint: (run, split)
        for run in runs
        if not run.refusal
        for split in (run.train, *([run.val] if run.val else []), *run.evaluated.values())
    }
    bad: dict[str, None] = {}
    for run, split in splits.values():
        source = run.source(split)
        if source.in_files():
            bad |= dict.fromkeys(source.unreadable(split).values())
    if bad:
        each = [reason.partition(" `python -m harness")[0] for reason in bad]
        raise HarnessError(
            "\n".join([f"{len(each)} images cannot be read; nothing was run.", *each])
            + "\nRepair or remove them, or leave them out with --on-bad-image skip."
        )

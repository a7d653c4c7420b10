"""A recommendation in words: this one, how sure, what it costs, what would make it surer."""

import shlex
from collections.abc import Sequence
from typing import Any

from harness.certainty.intervals import ZERO_SHOT, signed
from harness.certainty.intervals import shown as interval
from harness.certainty.sequential import Look
from harness.certainty.statistics import SAME, SURE, Difference
from harness.cli.options import RESULTS
from harness.cli.recommend_numbers import costs, weakest
from harness.files import shown
from harness.images import library
from harness.images.own import UserImages
from harness.records.tables import duration, format_table, image_count, wrapped
from harness.runs.budget import written
from harness.runs.recommend import RESERVE, Recommendation

MANY = 20  # times as many images are no advice
UNEQUAL = 3  # times as many images has a class


def text(found: Recommendation, command: Sequence[str]) -> str:
    """For a reader.

    Args:
        command: the options of the dataset and the backbone, for the commands that are advised.
    """
    best, _ = found.climb.best
    parts = [
        "\n".join(wrapped([_answer(found)])),
        "\n".join(["How sure", *wrapped(_sure(found))]),
        "\n".join(["What it costs", *wrapped(_cost(found, best))]),
        "\n".join(["What would make it surer", *wrapped(_surer(found))]),
        "\n".join(["To train it on all training images", *_final(found, best, command)]),
        format_table(_methods(found), "markdown", _caption(found)),
        format_table(
            _looks(found),
            "markdown",
            f"The looks that were taken, in {_time(found.spent)} of {_time(found.budget)}.",
        ),
    ]
    return "\n\n".join(parts)  # fmt: skip


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else duration(seconds)


def remarks(found: Recommendation, root: Any) -> list[str]:
    """Sentences on what a user would not expect of the data."""
    said = library.unread(found.data.name, found.data.dataset, root)
    gone = found.data.gone
    if gone:
        what = f"{image_count(len(gone))} that cannot be read"
        said.append(f"left out: {what}, such as {shown(gone[0])}.")
    if isinstance(found.data.dataset, UserImages) and ":" not in found.backbone:
        said.append(
            f"{found.backbone} was trained on emoji and icons and knows no photographs: which "
            "method is best with it says little of another model. Choose a CLIP with --backbone."
        )
    return said


def _answer(found: Recommendation) -> str:
    climb, look = found.climb, found.climb.last.look
    best, same = climb.best
    value = _percent(look, best)
    if same:
        first = max(climb.left, key=lambda m: look.values[m])
        it = "it" if first == best else f"the most accurate, {first},"
        return (
            f"Take {best}: it is the cheapest of {_list(climb.left)}, of which each differs from "
            f"{it} by less than {100 * SAME:g} points beyond doubt. Its accuracy on held-out "
            f"training images is {value}."
        )
    if climb.told_apart:
        few = climb.last.rung.shots < found.data.shots
        return (
            f"Take {best}{', for now' * few}. Its accuracy on held-out training images is {value}, "
            "and every other method that was compared is worse beyond doubt"
            + f", with {image_count(climb.last.rung.shots)} a class" * few
            + "."
        )
    return (
        f"Take {best}, for now. Its accuracy on held-out training images, {value}, is the highest, "
        "but it is not told apart from all others."
    )


def _sure(found: Recommendation) -> list[str]:
    climb, look, rung = found.climb, found.climb.last.look, found.climb.last.rung
    best, _ = climb.best
    others = sorted((m for m in look.labels if m != best), key=lambda m: -look.values[m])
    said = []
    if others:
        next_one = f"{others[0]}, the next in the last look"
        said.append(f"It is {_ahead(look.difference(best, others[0]), next_one)}.")
    if best != ZERO_SHOT and others[:1] != [ZERO_SHOT]:
        said += _zero_shot(found, best)
    unsure = [m for m in climb.left if m != best]
    if unsure and not climb.best[1]:
        said.append(
            f"Not told apart from it by the stricter rule for several looks: {_list(unsure)}."
        )
    if climb.beaten:
        each = [f"{name} (by {by})" for name, (by, _) in climb.beaten.items()]
        said.append(f"Beaten beyond doubt with {image_count(rung.shots)} a class: {_list(each)}.")
    said.append(
        f"The chance that any method is called beaten although it is as good is at most "
        f"{1 - SURE:.0%}, for all looks together. The intervals are for one difference at a time."
    )
    if others:
        said.append(
            f"Its own accuracy is the highest of {len(look.labels)} on the same images, and so on "
            "average a little too high."
        )
    counts = sorted(found.data.counts.values()) or [0]
    least, most = counts[0], counts[-1]
    if most > UNEQUAL * least:
        said.append(
            f"The largest class has {image_count(most)} and the smallest {least}: accuracy counts "
            "images, and a small class little. `leaderboard --metrics per-class` counts classes."
        )
    if rung.shots < found.data.shots:
        said.append(
            f"This compares fits on {image_count(rung.shots)} a class. There are up to "
            f"{found.data.shots} in a fold, with which the order may change."
        )
    if climb.untried:
        each = [name + _before(found, name) for name in climb.untried]
        said.append(f"Not compared with it in the last look, for lack of time: {_list(each)}.")
    said += [f"{name} has no result: {why}." for name, why in climb.failed.items()]
    for why in dict.fromkeys(found.refused.values()):
        names = [name for name, each in found.refused.items() if each == why]
        said.append(f"Not compared: {_list(names)}: {why}.")
    return said


def _zero_shot(found: Recommendation, best: str) -> list[str]:
    """How far the method is ahead of zero-shot, in the last look that had both."""
    for taken in reversed(found.climb.looks):
        if {best, ZERO_SHOT} <= {*taken.look.labels}:
            when = "is" if taken is found.climb.last else f"was, with {taken.rung},"
            return [f"It {when} {_ahead(taken.look.difference(best, ZERO_SHOT), ZERO_SHOT)}."]
    return []


def _before(found: Recommendation, name: str) -> str:
    """What a method came to in the last look that it was in."""
    for taken in reversed(found.climb.looks):
        if name in taken.look.labels:
            best = found.climb.best[0]
            beside = f" against {_percent(taken.look, best)}" if best in taken.look.labels else ""
            return f" ({_percent(taken.look, name)}{beside} with {taken.rung})"
    return " (never tried)"


def _ahead(found: Difference, other: str) -> str:
    where = "ahead of" if found.value > 0 else "behind"
    text = f"{100 * abs(found.value):.2f} points {where} {other}" if found.value else (
        f"as accurate as {other}"
    )  # fmt: skip
    if found.low is None or found.high is None:
        return f"{text} (no interval: all held-out images of a fold are one unit)"
    return f"{text} (difference, 95%: {100 * found.low:+.2f} to {100 * found.high:+.2f} points)"


def _cost(found: Recommendation, best: str) -> list[str]:
    numbers = costs(found, best)
    trained = f"{numbers['trainable_parameters']:,} trained parameters"
    images = image_count(found.climb.last.rung.shots)
    fit = f"{numbers['train_seconds']:.1f} s for a fit with {images} a class"
    if not numbers["trainable_parameters"]:
        trained = "No trained parameters"
    said = [f"{trained}, {fit} on this machine." if numbers["train_seconds"] else f"{trained}."]
    said.append("The time of an image is not measured here: `run --tasks efficiency` does.")
    return said


def _surer(found: Recommendation) -> list[str]:
    climb, data = found.climb, found.data
    best, same = climb.best
    said = [f"It ended because {climb.ended}."]
    if found.needs is not None:
        whole = written(RESERVE * (found.needs + found.prepared))
        what = f"a look at {climb.upwards[0]}" if climb.upwards else "that"
        if climb.untried:
            what = f"a look with {_list(climb.untried)}, too"
        said.append(f"More time: another --budget {whole} allows {what}. Finished runs are kept.")
    rivals = [m for m in climb.left if m != best]
    if rivals and not same and not climb.upwards:
        look = climb.last.look
        rival = max(rivals, key=lambda m: look.values[m])
        times, images = look.needed(best, rival), look.of_images(best, rival)
        if times is None or times > MANY:
            said.append(f"{best} and {rival} differ too little for more images to tell them apart: "
                        "choose by cost.")  # fmt: skip
        else:
            said.append(f"About {times:.1f} times as many training images would tell {best} and "
                        f"{rival} apart, if they differ by as much as here.")  # fmt: skip
        if images is not None and images < 0.5:
            said.append("Fits with other seeds differ more than images do: more images in each "
                        "class help both.")  # fmt: skip
    weak = weakest(found, best)
    if weak:
        each = [f"{shown(n)} ({right} of {number} answers right)" for n, right, number in weak]
        said.append(f"More images of the classes that {best} most often misses: {_list(each)}.")
    most = max(data.counts.values())
    if data.asked < most:
        said.append(f"There are up to {most} training images a class; only {data.asked} were "
                    f"drawn. --shots {most} compares with all of them.")  # fmt: skip
    if not data.has_val:
        said.append(
            "The dataset has no val images: methods that choose settings do so on training images "
            "that are not drawn. A val part of its own gives them more."
        )
    return said


def _final(found: Recommendation, best: str, command: Sequence[str]) -> list[str]:
    shots = found.data.final_shots(found.uses_val)
    first = found.records[best][0]
    line = shlex.join(["python", "-m", "harness", "run", "--methods", best, "--tasks", "few_shot",
                       "--shots", str(shots), *command])  # fmt: skip
    if first.fit is None:
        use = ["Nothing is trained. This scores it on the test images, once, at the end."]
        return [f"  {line}", *wrapped(use)]
    return [
        f"  {line}",
        *wrapped([
            "It scores the test images, once, at the end. In Python, with the .json file that it "
            f"writes below {RESULTS}/few_shot:"
        ]),
        '  import harness; model = harness.load("FILE.json"); model.logits(["IMAGE"])',
        *wrapped([
            "The accuracies here are of fits that draw "
            f"{image_count(found.climb.last.rung.shots)} a class from "
            f"{_share(len(found.data.folds))} of the training images. This fit draws "
            f"up to {shots} from all of them, and may do better."
        ]),
    ]  # fmt: skip


def _share(folds: int) -> str:
    return {2: "half", 3: "two thirds", 4: "three quarters"}.get(folds, "four fifths")


def _caption(found: Recommendation) -> str:
    look, rung = found.climb.last.look, found.climb.last.rung
    sample = look.sample
    units = f" in {sample.units:,} units" if sample.units < sample.images else ""
    return "\n".join(wrapped([
        f"{found.data.name}, {found.backbone}: {rung} of {len(found.data.folds)} folds, "
        f"{sample.images:,} held-out images{units}. Accuracy and difference in percent, with 95% "
        "intervals for other images and seeds; no test image was scored."
    ]))  # fmt: skip


def _methods(found: Recommendation) -> list[dict[str, str]]:
    climb, look = found.climb, found.climb.last.look
    best, _ = climb.best
    rows = []
    for label in sorted(look.labels, key=lambda m: -look.values[m]):
        cost = costs(found, label)
        state = "recommended" if label == best else "not told apart"
        if label in climb.beaten:
            state = f"beaten by {climb.beaten[label][0]}"
        rows.append({
            "method": label,
            "accuracy": f"{_percent(look, label)[:-1]} ({interval(look.interval(label))})",
            f"{best} is ahead by": signed(look.difference(best, label)) if label != best else "",
            "params": f"{cost['trainable_parameters']:,}",
            "fit": f"{cost['train_seconds']:.1f} s",
            "verdict": state,
        })  # fmt: skip
    return rows


def _looks(found: Recommendation) -> list[dict[str, str]]:
    rows = []
    for number, (taken, spent) in enumerate(zip(found.climb.looks, found.looks, strict=True), 1):
        look = taken.look
        rows.append({
            "look": str(number), "compared": str(taken.rung), "methods": str(len(look.labels)),
            "runs": str(spent.runs), "of them kept": str(spent.kept),
            "forecast": duration(spent.forecast), "taken": duration(spent.seconds),
            "best": look.leader, "beaten": ", ".join(look.beaten) or "none",
        })  # fmt: skip
    return rows


def _percent(look: Look, label: str) -> str:
    return f"{100 * look.values[label]:.1f}%"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]

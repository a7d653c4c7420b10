"""Where the names of dots stand in a picture, so that each can be read."""

import math
from collections.abc import Iterable, Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]

LETTER, LINE = 7.3, 15  # a letter and a line of a name: 12 px, letters of one width
RADIUS = 4  # of a dot


def labels(points: dict[str, Point], area: Box, kept_free: Sequence[Box] = ()) -> dict[str, Box]:
    """A box in `area` for the name of each dot: as near to it as there is room, over no other name,
    no dot and nothing of `kept_free`, with a line to it that crosses few of them."""
    dots = {n: (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for n, (x, y) in points.items()}
    placed: dict[str, Box] = {}
    leaders: list[tuple[Point, Point]] = []

    def crowd(name: str) -> int:
        return sum(math.dist(points[name], other) < 40 for other in points.values())

    for name in sorted(points, key=lambda each: (crowd(each), points[each])):
        best: tuple[float, Box, tuple[Point, Point]] | None = None
        for box, line in _candidates(points[name], LETTER * len(name), area):
            price = round(math.dist(*line), 3)
            if best and price >= best[0]:
                break  # the others are farther
            taken = [*placed.values(), *dots.values(), *kept_free]
            price += 1000 * sum(_overlap(box, other) for other in taken)
            price += 1000 * any(_between(box, *other) for other in leaders)
            if best and price >= best[0]:
                continue
            price += 200 * sum(_between(other, *line) for other in placed.values())
            others = [other for each, other in dots.items() if each != name]
            price += 12 * sum(_between(other, *line) for other in others)
            price += 20 * sum(_overlap(_wider(box), other) for other in others)
            price += 150 * sum(_between(other, *line) for other in kept_free)
            price += 60 * sum(_cross(line, other) for other in leaders)
            if best is None or price < best[0]:
                best = price, box, line
        assert best is not None  # there are always candidates
        placed[name] = best[1]
        leaders.append(best[2])
    return placed


def _candidates(point: Point, width: float, area: Box) -> Iterable[tuple[Box, tuple[Point, Point]]]:
    """Boxes around a dot, the nearest first, each with the line from the dot to it."""
    x, y = point
    for gap in (RADIUS + 2, *range(12, 240, 8)):
        for turn in range(24):
            angle = math.tau * turn / 24
            across, down = math.cos(angle), math.sin(angle)
            near = x + gap * across, y + gap * down
            left = near[0] - width * (1 - across) / 2
            top = near[1] - LINE * (1 - down) / 2
            box = left, top, left + width, top + LINE
            if area[0] <= left and area[1] <= top and box[2] <= area[2] and box[3] <= area[3]:
                yield box, (point, near)
    left = max(area[0], min(x, area[2] - width))  # no room at all: over the dot itself
    yield (left, y, left + width, y + LINE), (point, point)


def _wider(box: Box, margin: float = 10) -> Box:
    return box[0] - margin, box[1] - margin / 2, box[2] + margin, box[3] + margin / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _between(box: Box, start: Point, end: Point) -> bool:
    """Whether a line passes a box, looked at every four pixels or so."""
    steps = max(1, int(math.dist(start, end) / 4))
    return any(
        box[0] < start[0] + (end[0] - start[0]) * i / steps < box[2]
        and box[1] < start[1] + (end[1] - start[1]) * i / steps < box[3]
        for i in range(1, steps + 1)
    )


def _cross(a: tuple[Point, Point], b: tuple[Point, Point]) -> bool:
    def side(line: tuple[Point, Point], p: Point) -> float:
        (x0, y0), (x1, y1) = line
        return (x1 - x0) * (p[1] - y0) - (y1 - y0) * (p[0] - x0)

    return side(a, b[0]) * side(a, b[1]) < 0 and side(b, a[0]) * side(b, a[1]) < 0

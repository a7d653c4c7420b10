"""What commands take that compute nothing: imports, files, and the text they print."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.bench.process import called
from harness.records.tables import format_table

FIRST = ("run", "--methods", "zero_shot", "--tasks", "base2new")  # as the main command, quick to do
LIMIT = 5.0  # seconds of a second call of the main command


def measured(repeats: int) -> Mapping[str, Any]:
    """Seconds of wall clock and processor, the least of `repeats` calls, of each command.

    Raises:
        HarnessError: a command failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = ["--results", str(Path(folder) / "results")]
        commands: Mapping[str, Sequence[str]] = {
            "--help": ["--help"],
            "list methods": ["list", "methods"],
            "show dra": ["show", "dra"],
            "run, a second time": [*FIRST, *results],
            "leaderboard": ["leaderboard", *results],
            "status": ["status", *results],
        }
        cache = str(Path(folder) / "cache")
        for prepared in ([*FIRST, *results], ["list", "methods"]):  # what is kept is there then
            called("-m", "harness", *prepared, HARNESS_CACHE=cache)
        rows = []
        for name, command in commands.items():
            ended = [called("-m", "harness", *command, HARNESS_CACHE=cache) for _ in range(repeats)]
            wall = min(each.seconds for each in ended)
            processor = min(each.processor_seconds for each in ended)
            rows.append({"command": name, "seconds": wall, "processor_seconds": processor})
    return {"repeats": repeats, "python": sys.version.split()[0], "rows": rows}


def table(content: Mapping[str, Any]) -> str:
    """The measurements as a table."""
    rows = [
        {
            "command": row["command"],
            "seconds": f"{row['seconds']:.2f}",
            "of the processor": f"{row['processor_seconds']:.2f}",
        }
        for row in content["rows"]
    ]
    shown = format_table(rows, "markdown", "Seconds of commands that compute nothing.")
    return (
        f"{shown}\n\nThe least of {content['repeats']} calls, Python {content['python']}, files in "
        f"the system's cache. A second call of the main command should take less than {LIMIT:g} "
        "seconds."
    )

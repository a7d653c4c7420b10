"""`python -m harness.naive run ...`: a run without what the engine spares, for `bench` to time.

Whole towers over all positions in every step, images decoded and encoded in every epoch;
without the harness's own checks of a fit.
"""

import sys
from unittest import mock

from harness import engine, inputs
from harness.bench import naively
from harness.cli import main

if __name__ == "__main__":
    with (
        naively(),
        mock.patch.object(inputs.Images, "_fits", return_value=False),
        mock.patch.object(engine, "_checks", return_value=[]),
    ):
        sys.exit(main([*sys.argv[1:], "--jobs", "1"]))

"""Standard output and error of a command: a closed pipe or a full disk does not end the work."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Stream:
    """A text stream that goes on in silence once it cannot be written.

    failure: why, but for a closed pipe: whoever read it has seen enough.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """As of a file; the length of the text."""
        with self._kept():
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As of a file."""
        with self._kept():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.failure = self.failure or error
            self._silence()

    def _silence(self) -> None:
        """What is written from now on, and what waits to be, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self.stream = os.fdopen(nowhere, "w")


@contextlib.contextmanager
def kept() -> Iterator[Stream]:
    """Meanwhile sys.stdout and sys.stderr are such streams; the value is that of stdout."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - as None, where a stream was closed
        sys.stdout, sys.stderr = out, err = [Stream(stream or nowhere) for stream in before]
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = before

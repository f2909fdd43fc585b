"""What the commands of data_prep share: lists of names, errors as a sentence, exit statuses."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from data_prep.errors import BuildError


def run_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, stopped: str = "Stopped."
) -> int:
    """Parse, call options.run(options), and return the exit status.

    2 after a BuildError or a full disk, 130 after Ctrl-C (`stopped` is then said).
    """
    options = parser.parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, then end
    try:
        options.run(options)
    except BuildError as error:
        say(str(error), sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(stopped, sys.stderr)
        return 130
    except OSError as error:  # no space left, no permission
        say(f"{parser.prog} stopped: {error}.", sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def say(text: str, stream: TextIO | None = None) -> None:
    """Print at once; of file names, what no terminal can show is escaped."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=stream or sys.stdout, flush=True)


def names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())

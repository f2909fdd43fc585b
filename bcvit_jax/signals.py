"""SIGTERM and Ctrl-C: save, say how to go on, end; a second one ends at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stop(BaseException):
    """The end that a signal asked for; its text says how far things got.

    No Exception, so that what turns a library's faults into sentences lets it pass.
    """


class Signals:
    """Raises Stop at a signal, or, within `deferred`, leaves it to a loop that asks `received`."""

    def __init__(self):
        self.received: int | None = None
        """Number of the first signal."""
        self._deferred = False
        self._told = threading.Lock()

    def install(self) -> None:
        """Take the two signals over for the rest of the process."""
        for number in _NUMBERS:
            signal.signal(number, self._handle)
        # Python calls a handler between two of its own instructions only: a long compilation would
        # hold back the second signal. A thread that reads the wake-up pipe sees it at once.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal; whoever is in here ends soon after `received` is set."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, _frame: Any) -> None:
        self._note(number)
        if not self._deferred:
            raise Stop("stopped")

    def _note(self, number: int) -> None:
        """Whichever of handler and thread comes first tells what happens."""
        self.received = self.received or number
        if self._deferred and self._told.acquire(blocking=False):
            print("\nsaving; once more ends without saving", file=sys.stderr, flush=True)

    def _watch(self, pipe: int) -> None:
        seen = 0
        while True:
            number = os.read(pipe, 1)[0]
            if number in _NUMBERS:
                seen += 1
                if seen > 1:
                    os._exit(128 + number)
                self._note(number)

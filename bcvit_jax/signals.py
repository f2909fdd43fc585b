"""SIGTERM, Ctrl-C, a closed terminal: save, say how to go on, end; a second one ends at once."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
        """Take the signals over for the rest of the process, but for those ignored (`nohup`)."""
        for number in _NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
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
        if number == signal.SIGHUP:
            _leave_terminal()
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
                if number == signal.SIGHUP:
                    _leave_terminal()
                if seen > 1:
                    os._exit(128 + number)
                self._note(number)


def _leave_terminal() -> None:
    """Nothing is said to a terminal any more: one that is closed answers with an error."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere.fileno(), stream)

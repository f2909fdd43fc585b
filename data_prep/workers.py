"""One function over many tasks in several processes: in order, with few of them in memory."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_prep.errors import BuildError

AHEAD = 4  # tasks a worker that are given out, or whose results wait

Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_order(
    work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int | None = None
) -> Generator[Result, None, None]:
    """work(*task) for every task, in order, in `workers` processes (default: one a core).

    The processes end with the caller, also if it is killed; closing the generator ends them in the
    middle of a task. Raises BuildError if one of them is killed.
    """
    workers = min(workers or cores(), len(tasks))
    if workers <= 1:
        yield from (work(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            if len(pending) == AHEAD * workers:
                yield pending.popleft().result()
            with _ctrl_c_for_the_parent():
                pending.append(pool.submit(work, *task))  # may start a process
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise BuildError(
            "A working process was killed, most likely for memory: try a smaller --workers."
        ) from error
    except BaseException:  # stopped: end in the middle of a task
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_for_the_parent() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: the parent ends them.

    They inherit the blocked signal; one that comes meanwhile reaches the parent afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # no POSIX system
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    """End with the parent, even if it is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

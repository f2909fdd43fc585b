"""The process that jax runs in: its memory pages and its cache of compiled programs.

The allocator reads its setting when a process starts, so `main` starts Python again with it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def settings(environment: Mapping[str, str], pages: Path = _PAGES) -> dict[str, str]:
    """Variables that make jax faster here and that `environment` does not set itself.

    GLIBC_TUNABLES: on Linux's `madvise` setting the allocator asks for huge pages, so a train step
    on a CPU spends a sixth less time (page faults on its temporaries). JAX_COMPILATION_CACHE_DIR:
    compiled programs are kept, so the same command starts faster the second time.
    """
    wanted = {}
    if pages.exists() and "[madvise]" in pages.read_text():
        wanted["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    wanted["JAX_COMPILATION_CACHE_DIR"] = os.path.join(home, "bcvit_jax", "programs")
    return {name: value for name, value in wanted.items() if name not in environment}


def restart_with_settings() -> None:
    """Start this program again, in the same process, where settings are missing."""
    if missing := settings(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def described(environment: Mapping[str, str], options: Mapping[str, str] = {}) -> str:
    """The settings in force and the compiler's options, for the log."""
    names = ("GLIBC_TUNABLES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    settings = {name: environment[name] for name in names if environment.get(name)} | dict(options)
    return "  ".join(f"{name}={value}" for name, value in settings.items())

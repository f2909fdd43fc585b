"""A run's report from its saved predictions: `python -m bcvit_jax.report --workdir RUN`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bcvit_jax.errors import UserError, fail
from bcvit_jax.predictions import load_run
from bcvit_jax.report.writing import write_report
from bcvit_jax.summary import table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.report",
        description="Write the report of a run again, from the predictions it saved.",
    )
    parser.add_argument("--workdir", required=True, help="work folder of the run")
    workdir = Path(parser.parse_args(arguments).workdir)
    try:
        summary = write_report(workdir, *load_run(workdir))
    except (UserError, OSError) as error:
        return fail(error)
    print(table(summary))
    print(f"\n{workdir / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

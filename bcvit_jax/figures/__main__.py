"""The paper's figures 8 to 11 of a trained run: `python -m bcvit_jax.figures --workdir RUN`."""

import argparse
import sys
from pathlib import Path

from bcvit_jax.errors import RunError, UserError, fail

KINDS = ("attention", "kept", "patches", "tsne")

_HELP = """\
Draw what a trained run looks at, in cells that it was not trained on.

  attention   the attention of each head, in a colour of its own, and of all heads (figure 8)
  kept        the patches that reach the last block, framed in red, over the whole attention map
              (figure 9), and how often they lie on the cell, beside chance
  patches     the patch schemes side by side (figure 10)
  tsne        images and features in two dimensions (figure 11); needs scikit-learn. Features with
              and without contrastive loss stand side by side where --contrast names a run of the
              same data set trained the other way

Each is written as NAME.png, NAME.svg and NAME.csv; figures.json holds the numbers. The same command
draws the same pictures in their place; with --only the other pictures and numbers stay.
"""


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.figures",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN")
    parser.add_argument("--fold", default="", help="a held-out fold (the first that is finished)")
    parser.add_argument(
        "--images",
        nargs="+",
        default=["8"],
        metavar="N",
        help="cells to show (8: of some classes a typical recognised and a typical mistaken one), "
        "or their sources as in predictions.csv",
    )
    parser.add_argument("--only", default=",".join(KINDS), help=f"of {','.join(KINDS)} (all)")
    parser.add_argument("--contrast", type=Path, metavar="OTHER_RUN")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="held-out images for numbers, tsne (all)"
    )
    parser.add_argument("--data", default="", help="the run's data set, where it was moved")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (RUN/figures)")
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.workdir / "figures"
    try:
        kinds = wanted(chosen.only)
        if chosen.limit < 0:
            raise UserError(f"--limit is {chosen.limit}; it must be 0 (all) or more")
        from bcvit_jax.figures.collection import Asked, FigureSet

        asked = Asked(
            chosen.workdir,
            out,
            kinds,
            chosen.fold,
            chosen.data,
            chosen.images,
            chosen.limit,
            chosen.contrast if "tsne" in kinds else None,
        )
        for line in FigureSet(asked).write():
            print(line, flush=True)
    except (UserError, RunError, OSError) as error:
        return fail(error)
    print(f"{out}: figures.json, {', '.join(f'{name}.png, .svg, .csv' for name in kinds)}")
    return 0


def wanted(only: str) -> tuple[str, ...]:
    """The figures that --only names, in their order."""
    named = [name.strip() for name in only.split(",")]
    for name in named:
        if name not in KINDS:
            raise UserError(f"--only has {name!r}; it must be of {', '.join(KINDS)}")
    return tuple(name for name in KINDS if name in named)


if __name__ == "__main__":
    from bcvit_jax import runtime

    runtime.restart_with_settings()
    sys.exit(main(sys.argv[1:]))

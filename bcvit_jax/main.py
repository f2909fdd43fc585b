"""Train and evaluate: `python -m bcvit_jax.main --config=configs/base.py [--workdir=runs/NAME]`.

The same command again goes on where it stopped; a finished run says so and prints its report.
Single settings are changed on the command line: `--config.data.path=data/mine --config.epochs=20`.
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from bcvit_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/base.py", "A file in configs/, with a variant after a colon if it has any."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run (default: runs/ and the config's name)."
)


def run(_) -> None:
    """What absl calls once the flags are read."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from bcvit_jax import experiment  # here, so that --help answers without jax

    workdir = _WORKDIR.value or default_workdir(_flag_value(sys.argv))
    try:
        code = experiment.run(_CONFIG.value.to_dict(), Path(workdir))
    except UserError as error:
        sys.exit(_say(error, 2))
    sys.exit(code)


def default_workdir(config: str) -> str:
    """`configs/base.py:literal` -> `runs/base-literal`."""
    file, _, variant = config.partition(":")
    name = Path(file).stem
    return f"runs/{name}-{variant}" if variant else f"runs/{name}"


def _flag_value(arguments: list[str]) -> str:
    for place, argument in enumerate(arguments):
        if argument.lstrip("-") == "config" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.lstrip("-").startswith("config="):
            return argument.partition("=")[2]
    return "configs/base.py"


def _parse(arguments: list[str]) -> list[str]:
    """absl's parser, with every fault as one sentence."""
    if {"--help", "-help", "-h", "--helpshort", "-?"} & set(arguments):
        print(__doc__)
        print(flags.FLAGS.module_help("bcvit_jax.main") or flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        rest = flags.FLAGS(arguments)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, ImportError) as error:
        sys.exit(_say(error, 2))
    except OSError as error:
        sys.exit(_say(f"no config file {error.filename}; see configs/ for those there are", 2))
    if len(rest) > 1:
        sys.exit(_say(f"{rest[1]!r} is no flag; did you mean --config={rest[1]}?", 2))
    return rest


def _say(error: object, code: int) -> int:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print("error: " + " ".join(str(text).split()), file=sys.stderr)
    return code


def main() -> None:
    # `configs` is found from the folder where the command is typed, as Python finds it with -m.
    app.run(run, flags_parser=_parse)


if __name__ == "__main__":
    main()

"""Train and evaluate: `python -m bcvit_jax.main --config=configs/base.py [--workdir=runs/NAME]`.

The same command again goes on where it stopped; a finished run says so and prints its report.
Single settings are changed by flags: `--config.data.path=data/mine --config.epochs=20`.
"""

import logging
import os
import sys

from bcvit_jax import command_line, runtime
from bcvit_jax.errors import RunError, UserError, fail
from bcvit_jax.signals import Signals, Stop


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status (see --help)."""
    signals = Signals()
    signals.install()
    try:
        command = command_line.parse(arguments)
        if isinstance(command, str):
            print(command)
            return 0
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # Orbax, TFDS and Grain log each step and traceback; what goes wrong reaches us as errors.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        from bcvit_jax import experiment  # here, so that --help answers without jax

        experiment.run(command.config.to_dict(), command.workdir, signals)
    except Stop as stop:
        print(f"{stop}; the same command again goes on from there", file=sys.stderr)
        return 128 + (signals.received or 0)
    except (UserError, RunError, FloatingPointError, OSError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    runtime.restart_with_settings()
    sys.exit(main(sys.argv[1:]))

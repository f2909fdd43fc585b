"""What was typed: the config file, its fields changed by flags, and the work folder.

Everything wrong with it is a UserError; nothing heavy is imported, so that --help answers at once.
"""

import ast
import difflib
import inspect
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from bcvit_jax.errors import UserError

DEFAULT_CONFIG = "configs/base.py"

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: 'a tuple such as "(0, 1)"',
}

_HELP = """\
Train a network with each fold held out in turn, evaluate it, and write a report.

  python -m bcvit_jax.main --config=configs/demo.py
  python -m bcvit_jax.main --config=configs/base.py:literal --workdir=runs/literal
  python -m bcvit_jax.main --config=configs/base.py --config.data.path=data/mine --config.epochs=20

  --config=FILE[:VARIANT]     what to train; default configs/base.py
  --config.FIELD=VALUE        change one setting; tuples in quotes: --config.folds="(0, 1)"
  --workdir=FOLDER            where the run is kept; default runs/NAME[-VARIANT]
  --help                      this page; after --config=FILE its variants and settings

The same command again goes on where it stopped; a finished run prints its report. Ctrl-C, SIGTERM
and a closed terminal save first. Exit status: 0 done, 1 failed on the way, 2 refused before any
work, above 128 ended by a signal.
"""


class Command(NamedTuple):
    """What a command line asks for."""

    config: ConfigDict
    workdir: Path


def parse(arguments: list[str]) -> Command | str:
    """The command in `arguments` (without the program's name), or the text that --help asks for.

    Errors: UserError on whatever can't be understood.
    """
    arguments, name = _take_config(arguments)
    if {"-h", "-help", "--help", "--helpfull"} & set(arguments):
        return _HELP + "\n" + (_about(name) if name else _configs())
    config = load_config(name or DEFAULT_CONFIG)
    workdir = _override(config, arguments) or default_workdir(name or DEFAULT_CONFIG)
    return Command(config, Path(workdir))


def default_workdir(name: str) -> str:
    """`configs/base.py:literal` → `runs/base-literal`."""
    file, _, variant = name.partition(":")
    return f"runs/{Path(file).stem}{'-' if variant else ''}{variant}"


def load_config(name: str) -> ConfigDict:
    """What `get_config` of a config file gives, `FILE` or `FILE:VARIANT`.

    Errors: UserError that names file and line where the file fails.
    """
    file, _, variant = name.partition(":")
    if not Path(file).is_file():
        near = difflib.get_close_matches(file, map(str, _config_files()), n=1)
        mend = f"did you mean {near[0]}?" if near else "see configs/ for those there are"
        raise UserError(f"there is no config file {file}; {mend}")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise UserError(f"config file {file} has no function get_config")
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"config file {file} has no variants, so {variant!r} means nothing")
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except Exception as error:
        if variant and type(error) is ValueError:
            raise UserError(str(error)) from None
        raise UserError(f"config file {_place(error, file)}: {_describe(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {file} gives {config!r}; it must return a ConfigDict")
    return config


def variants(file: str) -> list[str]:
    """The variants that a config file names in its function `variants`; none without one.

    Errors: UserError as of `load_config`.
    """
    load_config(file)
    named = runpy.run_path(file).get("variants")
    return list(named()) if named else []


def _place(error: Exception, file: str) -> str:
    """`configs/mine.py, line 12`: where in the file, or in another that it reads, it went wrong."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == file] or frames
    return f"{file}, line {own[-1].lineno}"


def _describe(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"


def _take_config(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--config FILE`, wherever it stood, and FILE."""
    rest, name = [], None
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("-config", "--config"):
            rest.append(word)
            continue
        name = value if equals else next(words, "")
        if not name or name.startswith("-"):
            raise UserError(f"--config lacks its file, such as --config={DEFAULT_CONFIG}")
    return rest, name


def _override(config: ConfigDict, arguments: list[str]) -> str | None:
    """Change `config` in place as the flags say; returns --workdir."""
    for word in arguments:
        if found := re.match(r"--?(?:no)?config\.([^=]+)", word):
            _check_field(config, found[1])
    values = flags.FlagValues()
    argv = [sys.argv[0], *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        rest = values(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(config, str(error))) from None
    except (flags.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    if rest[1:]:
        mend = f"did you mean --config={rest[1]}?" if rest[1].endswith(".py") else "see --help"
        raise UserError(f"{rest[1]!r} is no flag; {mend}")
    flags.FLAGS([sys.argv[0]])  # Grain's worker processes want absl's own flags read
    return values["workdir"].value


def _check_field(config: ConfigDict, name: str) -> None:
    node: Any = config
    for place, word in enumerate(name.split(".")):
        if not isinstance(node, ConfigDict) or word not in node:
            known = [field for field, _ in _fields(config)]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            siblings = ", ".join(node) if isinstance(node, ConfigDict) else "none"
            where = ".".join(["config", *name.split(".")[:place]])
            mend = f"did you mean config.{near[0]}?" if near else f"{where} has {siblings}"
            raise UserError(f"there is no field config.{name}; {mend}")
        node = node[word]
    if isinstance(node, ConfigDict):
        raise UserError(f"config.{name} is a group; set one of its fields: {', '.join(node)}")


def _wrong_value(config: ConfigDict, message: str) -> str:
    """absl's `flag --config.epochs=ten: invalid literal …` in our words."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if not found:
        return message
    *groups, last = found[1].split(".")
    node: Any = config
    for word in groups:
        node = node[word]
    kind = _KINDS.get(node.get_type(last), "of another type")
    return f"config.{found[1]} is {found[2]!r}; it must be {kind}"


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _about(name: str) -> str:
    """What a config file says of itself and its variants, and the settings of this one."""
    settings = _settings(load_config(name))
    return "\n".join(
        [_docstring(Path(name.partition(":")[0])), "", f"Settings of {name}:", *settings]
    )


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _settings(config: ConfigDict) -> list[str]:
    """Every field with its value, as a flag would set it."""
    shown = ((name, "" if value is None else value) for name, value in _fields(config))
    return [f"  --config.{name}={value!r}".replace("=''", "=") for name, value in shown]


def _config_files() -> list[Path]:
    return [path for path in sorted(Path("configs").glob("*.py")) if path.stem != "__init__"]


def _configs() -> str:
    """The first line of every config file's docstring."""
    lines = ["Configs here:"]
    for path in _config_files():
        lines.append(f"  {path!s:<26}{_docstring(path).partition(chr(10))[0]}")
    return "\n".join(lines)

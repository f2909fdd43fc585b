"""What may be typed, and the sentence for everything that may not."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bcvit_jax.command_line import Command, default_workdir, load_config, parse
from bcvit_jax.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)


def command(*arguments: str) -> Command:
    parsed = parse(list(arguments))
    assert isinstance(parsed, Command)
    return parsed


def test_defaults_to_the_paper():
    plain = command()
    assert plain.config.model.name == "bcvit_base_patch16_s12_224"
    assert plain.config.data.path == "data/lmu"
    assert plain.workdir == Path("runs/base")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.epochs=7"], "epochs", 7),
        (["--config.epochs", "7"], "epochs", 7),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.folds=(0, 1)"], "folds", (0, 1)),
        (["--config.folds=3"], "folds", (3,)),
        (["--config.model.stem=(32, 64)"], "model.stem", (32, 64)),
        (["--config.model.width=64"], "model.width", 64),
        (["--noconfig.data.balance"], "data.balance", False),
        (["--config.data.balance=false"], "data.balance", False),
        (["--config.data.path=a=b"], "data.path", "a=b"),
    ],
)
def test_flags_change_fields(arguments, field, value):
    node: Any = command("--config=configs/base.py", *arguments).config
    for name in field.split("."):
        node = node[name]
    assert node == value
    assert type(node) is type(value)


def test_order_of_flags_does_not_matter():
    config, workdir = command("--config.epochs=7", "--workdir", "w", "--config", "configs/base.py")
    assert (config.epochs, workdir) == (7, Path("w"))


@pytest.mark.parametrize(
    ("name", "workdir"),
    [
        ("configs/base.py", "runs/base"),
        ("configs/base.py:literal", "runs/base-literal"),
        ("/elsewhere/mine.py", "runs/mine"),
    ],
)
def test_work_folder_is_named_after_the_config(name, workdir):
    assert default_workdir(name) == workdir


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.data.pth=x"], "no field config.data.pth; did you mean config.data.path?"),
        (
            ["--config.optimizer.learning_rat=1"],
            "no field config.optimizer.learning_rat; did you mean config.optimizer.learning_rate?",
        ),
        (["--config.learning_rate=1"], "did you mean config.optimizer.learning_rate?"),
        (["--config.data.zzzzzzzz=1"], "config.data has augment, balance, "),
        (["--config.epochs.x=1"], "no field config.epochs.x"),
        (["--config.data=x"], "config.data is a group; set one of its fields: augment, balance, "),
        (["--config.epochs=ten"], "config.epochs is 'ten'; it must be a whole number"),
        (["--config.epochs=2.5"], "config.epochs is '2.5'; it must be a whole number"),
        (["--config.model.width=wide"], "config.model.width is 'wide'; it must be a whole number"),
        (["--config.optimizer.decay=:"], "config.optimizer.decay is ':'; it must be a number"),
        (["--config.data.balance=maybe"], "config.data.balance is 'maybe'; it must be true or f"),
        (["--config.epochs"], "config.epochs"),
        (["--config=configs/bose.py"], "no config file configs/bose.py; did you mean configs/base"),
        (["--config=elsewhere/x.yaml"], "there is no config file elsewhere/x.yaml; see configs/"),
        (["--config=configs"], "there is no config file configs"),
        (["--config"], "--config lacks its file"),
        (["--config="], "--config lacks its file"),
        (["--config=configs/base.py:leteral"], "no variant 'leteral'; it knows literal"),
        (["--wrokdir=x"], "wrokdir"),
        (["configs/base.py"], "'configs/base.py' is no flag; did you mean --config=configs/base.p"),
        (["train"], "'train' is no flag; see --help"),
    ],
)
def test_what_cannot_be_understood(arguments, sentence):
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(:\n    pass\n", "mine.py, line 1: SyntaxError: "),
        ("\nimport no_such_package\n", "mine.py, line 2: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError: division"),
        (
            "from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n"
            "    c.epochs = 'ten'\n    return c\n",
            "mine.py, line 6: TypeError: ",
        ),
        (
            "from configs import base\n\n\ndef get_config():\n    return base.get_config('no')\n",
            "mine.py, line 5: ValueError: configs/base.py has no variant 'no'",
        ),
        ("x = 1\n", "mine.py has no function get_config"),
        ("def get_config():\n    return None\n", "mine.py gives None; it must return a ConfigDict"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(f"{tmp_path}/mine.py")
    assert sentence in str(error.value)


def test_a_variant_of_a_config_without_variants(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return None\n")
    with pytest.raises(UserError, match="has no variants, so 'short' means nothing"):
        load_config(f"{tmp_path}/mine.py:short")


def test_help_lists_configs_and_settings():
    text = parse(["--help"])
    assert isinstance(text, str)
    for path in CHECKOUT.glob("configs/[a-z]*.py"):
        assert f"configs/{path.name} " in text
    settings = parse(["--config=configs/base.py:literal", "--help"])
    assert isinstance(settings, str)
    assert "--config.optimizer.learning_rate=0.001" in settings
    assert "--config.model.squeeze='mean'" in settings
    assert "`:literal` takes the paper's words" in settings


def test_help_is_quick_and_imports_no_jax():
    code = (
        "import sys; from bcvit_jax.main import main; main(['--help']);"
        "print([m for m in ('jax', 'flax', 'grain', 'tensorflow_datasets') if m in sys.modules])"
    )
    begin = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--config=configs/base.py" in done.stdout
    assert time.process_time() - begin < 1.0

"""Whole runs as a person starts them, on a tiny data set: killed, stopped, damaged, refused.

Everything random is on (drop path, mixup, flips), so that a run which was ended five times and
comes out bit-equal has kept every stream.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.torch import save_file
from timm.models import vision_transformer

from bcvit_jax.checkpoint import verify
from bcvit_jax.config import from_dict
from bcvit_jax.data import open_dataset
from bcvit_jax.experiment import _check_workdir
from bcvit_jax.main import main
from bcvit_jax.signals import Signals
from tests.test_checkpoint import flip_bit
from tests.tiny_run import CHECKOUT, TINY

STEPS, LOGGED = 48, TINY["log_steps"]

# Runs bcvit_jax.main, and sends itself a signal when it enters the function named first.
SIGNAL_WITHIN = """
import importlib, os, sys
module, name, number = sys.argv[1].rpartition(".")[0], sys.argv[1].rpartition(".")[2], sys.argv[2]
module = importlib.import_module(module)
function = getattr(module, name)
def within(*arguments, **named):
    os.kill(os.getpid(), int(number))
    return function(*arguments, **named)
setattr(module, name, within)
from bcvit_jax.main import main
sys.exit(main(sys.argv[3:]))
"""


class Runs:
    """Starts runs on one data set; compiled programs are kept, which saves most of the time."""

    def __init__(self, dataset: Path, folder: Path):
        self.dataset, self.folder = dataset, folder
        (folder / "torch.py").write_text("raise ImportError('training needs no torch')")
        self.environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "PYTHONPATH": str(folder),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def flags(self, workdir: Path, **changes: Any) -> list[str]:
        fields = TINY | {"data.path": self.dataset} | changes
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return [f"--workdir={workdir}", *flags]

    def start(
        self,
        workdir: Path,
        *,
        within: tuple[str, int] | None = None,
        before: str = "",
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> subprocess.Popen:
        """`before` is a shell command such as ulimit; `within` a function and a signal."""
        program = ["-m", "bcvit_jax.main"]
        if within:
            program = ["-c", SIGNAL_WITHIN, within[0], str(int(within[1]))]
        command = [sys.executable, *program, *self.flags(workdir, **changes)]
        if before:
            command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
        return subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=self.environment | (environment or {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


def end(process: subprocess.Popen, status: int) -> tuple[str, str]:
    """Standard output and error of a process that must end with `status`."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, f"{process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def wait_for(process: subprocess.Popen, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def checkpoints(workdir: Path, fold: str = "fold0") -> list[Path]:
    return sorted((workdir / fold / "checkpoints").glob("step_????????"))


def newer(workdir: Path) -> Callable[[], bool]:
    """Whether there is a checkpoint that is not there now."""
    before = checkpoints(workdir)
    return lambda: bool(set(checkpoints(workdir)) - set(before))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=device)
        for name, entry in ocp.metadata(str(path / "state")).metadata.items()
    }
    loaded = ocp.load(str(path / "state"), wanted)
    return {name: np.asarray(value) for name, value in loaded.items()}


def journal(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def runs(tiny_dataset, tmp_path_factory) -> Runs:
    return Runs(tiny_dataset, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(runs) -> tuple[Path, str, str]:
    """A run that nothing disturbs: its work folder and what it printed."""
    workdir = runs.folder / "straight"
    return workdir, *end(runs.start(workdir), 0)


@pytest.fixture(scope="module")
def troubled(runs, straight) -> tuple[Path, dict[str, str]]:
    """The same run, ended in every way: its work folder and what it said each time."""
    workdir = runs.folder / "troubled"
    said = {}

    process = runs.start(workdir, within=("bcvit_jax.train.make_program", signal.SIGINT))
    said["before training"] = end(process, 130)[1]

    process = runs.start(workdir)
    wait_for(process, newer(workdir))
    time.sleep(random.random())
    process.kill()
    end(process, -signal.SIGKILL)

    process = runs.start(workdir)
    wait_for(process, newer(workdir))
    wait_for(process, lambda: list(workdir.glob("fold0/checkpoints/.partial-*")))
    process.kill()
    end(process, -signal.SIGKILL)

    process = runs.start(workdir, **{"data.workers": 1})
    wait_for(process, newer(workdir))
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does, to the worker too
    said["SIGTERM"] = "".join(end(process, 143))

    damaged = checkpoints(workdir)[-1]
    flip_bit(max((damaged / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size))
    process = runs.start(workdir, within=("bcvit_jax.train.evaluate_fold", signal.SIGINT))
    said["damage"], said["evaluation"] = end(process, 130)
    assert str(damaged) in said["damage"]

    said["end"] = end(runs.start(workdir), 0)[0]
    return workdir, said


def test_a_run_that_was_ended_five_times_is_bit_equal(straight, troubled):
    ours, theirs = straight[0], troubled[0]
    last = [checkpoints(workdir)[-1] for workdir in (ours, theirs)]
    assert [path.name for path in last] == [f"step_{STEPS:08d}"] * 2
    one, other = map(arrays, last)
    assert one.keys() == other.keys()
    assert any(np.any(value) for name, value in one.items() if "trace" in name)
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name
    for suffix in ("csv", "npz"):
        name = f"fold0/predictions.{suffix}"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_no_step_is_logged_twice_or_lost(straight, troubled):
    ours, theirs = journal(straight[0]), journal(troubled[0])
    assert [line["step"] for line in ours] == [*range(LOGGED, STEPS, LOGGED), STEPS]
    for line in (*ours, *theirs):
        assert line.pop("images_per_second") > 0
    assert ours == theirs  # the averages too, wherever the run was ended


def test_each_end_says_how_to_go_on(troubled):
    _, said = troubled
    assert said["before training"].endswith("stopped; the same command again goes on from there\n")
    assert "saving; once more ends without saving" in said["SIGTERM"]
    assert f" of {STEPS}; the same command again goes on from there" in said["SIGTERM"]
    assert "fold0: saved after step " in said["SIGTERM"]
    assert said["evaluation"].endswith("stopped; the same command again goes on from there\n")


def test_a_flipped_bit_is_named_and_the_older_checkpoint_used(troubled):
    workdir, said = troubled
    assert " is damaged: state/" in said["damage"]
    assert "has changed\nfold0: going on after step " in said["damage"]
    assert len(list(workdir.glob("fold0/checkpoints/*.bad"))) == 1
    assert not list(workdir.glob("fold0/checkpoints/.partial*"))
    assert [verify(path) for path in checkpoints(workdir)] == [None, None]


def test_nothing_but_our_own_words_is_printed(straight):
    workdir, out, err = straight
    assert out.splitlines()[1] == "  network   bcvit_base_patch16_s12_224"
    assert f"fold0: step 1 of {STEPS} begins" in out.splitlines()
    assert out.splitlines()[-1] == f"report: {workdir / 'report.html'}"
    assert all(line.startswith(("fold0: ", "fold0 evaluation: ")) for line in err.splitlines())
    assert len(err.splitlines()) <= 40
    assert "img/s" in err and " left, loss=" in err


def test_the_work_folder_tells_the_run(runs, straight, troubled):
    for workdir in (straight[0], troubled[0]):
        config = json.loads((workdir / "config.json").read_text())
        assert (config["epochs"], config["model"]["width"], config["folds"]) == (8, 32, [0])
        assert list(workdir.glob("tensorboard/fold0/events*"))
        training = json.loads((workdir / "fold0" / "training.json").read_text())
        assert training["steps"] == STEPS
        assert training["minutes"] > 0
        assert not list(workdir.rglob("*.partial"))
    origin = json.loads((troubled[0] / "provenance.json").read_text())
    assert origin["seed"] == 0
    assert origin["packages"]["jax"] == jax.__version__
    assert origin["devices"] == ["cpu: cpu"]
    assert len(origin["dataset_fingerprint"]) == 64
    assert len(origin["continued"]) == 5
    assert all("started" in entry and "seed" not in entry for entry in origin["continued"])
    report = json.loads((troubled[0] / "report.json").read_text())
    assert report["run"]["training"]["steps"] == {"fold0": STEPS}
    assert report["run"]["training"]["parameters"] == training["parameters"] > 1000


# ---------------------------------------------------------- the same process from here on


@pytest.fixture
def say(runs, monkeypatch, capfd):
    """Runs `main` in this process: say(workdir, **changes) → status, output, errors."""
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(Signals, "install", lambda self: None)

    def run(workdir: Path, *arguments: str, **changes: Any) -> tuple[int, str, str]:
        status = main([*(runs.flags(workdir, **changes)), *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_a_finished_run_says_so_and_restores_its_report(straight, say):
    workdir = straight[0]
    kept = {name: (workdir / name).read_bytes() for name in ("report.json", "metrics.jsonl")}
    for name in ("report.json", "report.html", "confusion_matrix.png", "fold0/predictions.csv"):
        (workdir / name).unlink()
    status, out, err = say(workdir)
    assert (status, err) == (0, "")
    assert out.startswith(f"{workdir} is finished (fold0); --workdir starts a run elsewhere\n")
    assert "macro-F1" in out
    assert {name: (workdir / name).read_bytes() for name in kept} == kept
    assert (workdir / "report.html").exists() and (workdir / "fold0/predictions.csv").exists()


def test_pretrained_weights_begin_a_run_and_frozen_ones_stay(say, tmp_path):
    """Weights of timm's names for the run's network of two blocks and the last one."""
    made = vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, num_classes=3
    )
    state = made.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    changes = {"weights.path": tmp_path, "model.activation": "gelu", "epochs": 1}
    status, out, err = say(tmp_path / "wrong", **changes | {"model.width": 48})
    assert (status, out) == (2, "") and not (tmp_path / "wrong").exists()
    assert f"{tmp_path} does not fit this network: " in err
    assert "embedding.class_token is 1×1×32, the network's 1×1×48" in err
    changes |= {"optimizer.frozen_blocks": 2, "optimizer.layer_decay": 0.5}
    status, out, err = say(tmp_path / "run", **changes)
    assert status == 0, err
    fresh = "fresh: head, sparse_attention"
    assert f"weights: timm's ViT from {tmp_path}; {fresh}" in out
    after, kernel = arrays(checkpoints(tmp_path / "run")[-1]), "mlp.contract.kernel.value"
    for place in (0, 1):
        theirs = state[f"blocks.{place}.mlp.fc2.weight"].numpy().T
        np.testing.assert_array_equal(after[f"params.blocks.{place}.{kernel}"], theirs)
    change = after[f"params.last_block.{kernel}"] - theirs
    assert 0 < np.abs(change).max() < 0.2


def test_more_folds_train_only_the_new_ones(runs, straight):
    workdir = Path(shutil.copytree(straight[0], runs.folder / "more"))
    before = checkpoints(workdir)
    out, err = end(runs.start(workdir, folds="(0, 1)", checkpoint_epochs=7.0), 0)
    assert "fold1, held out:" in out and "mean ± sd" in out
    assert not [line for line in err.splitlines() if line.startswith("fold0")]
    assert checkpoints(workdir) == before
    assert [path.name for path in checkpoints(workdir, "fold1")] == [
        "step_00000042",
        "step_00000048",
    ]
    assert {line["fold"] for line in journal(workdir)} == {"fold0", "fold1"}
    report = json.loads((workdir / "report.json").read_text())
    assert [fold["fold"] for fold in report["folds"]] == ["fold0", "fold1"]


def unfinished(straight: tuple[Path, str, str], target: Path) -> Path:
    """A copy of the run as it was before its last checkpoint."""
    workdir = Path(shutil.copytree(straight[0], target))
    for name in ("fold0/predictions.npz", "fold0/predictions.csv", "fold0/training.json"):
        (workdir / name).unlink()
    shutil.rmtree(checkpoints(workdir)[-1])
    return workdir


def test_a_full_disk_is_one_sentence(runs, straight, tmp_path):
    workdir = unfinished(straight, tmp_path / "full")
    (good,) = checkpoints(workdir)
    largest = max(path.stat().st_size for path in good.rglob("*"))
    process = runs.start(workdir, before=f"ulimit -f {largest // 1024 // 2}")
    _, err = end(process, 1)
    assert err.splitlines()[-1] == (
        f"error: checkpoint {checkpoints(workdir)[0].with_name('step_00000048')} can't be written "
        "(File too large); make room or mend the folder, then the same command again goes on from "
        f"{good}"
    )
    assert checkpoints(workdir) == [good]
    # Orbax's threads may write on for a moment; the next start removes what they leave.
    assert verify(good) is None


def test_nothing_but_damaged_checkpoints(straight, say, tmp_path):
    workdir = unfinished(straight, tmp_path / "damaged")
    flip_bit(checkpoints(workdir)[0] / "extra.json")
    for _ in range(2):
        status, _, err = say(workdir)
        assert status == 2
        assert err.splitlines()[-1].startswith(f"error: every checkpoint in {workdir}/fold0/check")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        # The first loss is finite and the weights that its update makes are not.
        (
            {"optimizer.learning_rate": 3e38, "loss.contrastive": 1e6, "checkpoint_epochs": 0.1},
            "a weight is not finite at step 1; no checkpoint was saved before",
        ),
        (
            {"optimizer.learning_rate": 1e30, "checkpoint_epochs": 1.0},
            " at step 2; no checkpoint was saved before",
        ),
    ],
)
def test_what_is_not_finite_ends_the_run_and_is_never_kept(say, tmp_path, changes, sentence):
    small = {"model.depth": 1, "model.drop_path": 0.0}
    status, _, err = say(tmp_path / "w", **small, **changes)
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: fold0: ") and sentence in last
    assert "Lower config.optimizer.learning_rate" in last
    assert not checkpoints(tmp_path / "w")
    assert not list((tmp_path / "w").rglob("predictions*"))


def test_two_processes_of_a_cluster_train_as_one(runs, say):
    """As Open MPI would start them; a signal after the training ends both, all saved."""
    changes = {"data.mixup": 0.0, "model.drop_path": 0.0, "model.depth": 1, "epochs": 1}
    changes |= {"log_steps": 1, "checkpoint_epochs": 1.0}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    cluster = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": port}
    cluster |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    both = [
        runs.start(
            runs.folder / "cluster",
            within=("bcvit_jax.train.predict_fold", signal.SIGTERM),
            environment=cluster | {"OMPI_COMM_WORLD_RANK": rank},
            distributed=True,
            **changes,
        )
        for rank in "01"
    ]
    said = [end(process, 143) for process in both]
    assert "2 × cpu" in said[0][0]
    # The library that connects the processes says so itself.
    assert [line for line in said[1][0].splitlines() if not line.startswith("[Gloo]")] == []
    (saved,) = checkpoints(runs.folder / "cluster")
    assert verify(saved) is None
    assert say(runs.folder / "alone", **changes)[0] == 0
    alone, cluster = (journal(runs.folder / name) for name in ("alone", "cluster"))
    assert len(alone) == len(cluster) == 6
    for one, other in zip(alone, cluster, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], abs=1e-5)


def test_two_processes_do_not_train_in_one_folder(straight, say):
    with open(straight[0] / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, err = say(straight[0])
    assert status == 2
    assert err.startswith(f"error: another process is training in {straight[0]}; wait for it")


# --------------------------------------------------------------- refused before any work


def tree_of_folders(folder: Path) -> Path:
    (folder / "tree" / "BAS").mkdir(parents=True)
    (folder / "tree" / "BAS" / "1.png").touch()
    return folder / "tree"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.path": "{tmp}/no"}, "no data set at {tmp}/no: build one with `python -m data_prep"),
        ({"data.path": "data/lmu-not"}, "`python -m data_prep.build folder --images TREE --out"),
        ({"data.path": "{tmp}/empty"}, "{tmp}/empty is empty: build one with `python -m data_prep"),
        ({"data.path": "{tmp}/tree"}, "(BAS), not a data set: build one with `python -m data_prep"),
        ({"data.pth": "x"}, "no field config.data.pth; did you mean config.data.path?"),
        ({"epochs": "ten"}, "config.epochs is 'ten'; it must be a whole number"),
        ({"optimizer.learning_rate": -1}, "config.optimizer.learning_rate is -1.0; it must be ab"),
        ({"folds": "(7,)"}, "fold 7 is not in the data set"),
        ({"folds": "()"}, "config.folds is (); it must name at least one fold"),
        ({"folds": "(0, 0)"}, "The folds are fold0, fold0; name one or more, each once"),
        ({"train_folds": "(0, 1)"}, "fold 0 is in config.folds (held out) and in config.train_f"),
        ({"batch_size": 12}, "config.batch_size is 12, which 8 devices can't share evenly"),
        ({"model.image_size": 4}, "image_size 4 is smaller than patch_size 8"),
        ({"model.stride": 0}, "config.model: stride is 0; it must be >= 1"),
        (
            {"model.name": "vit_tny_patch16_224"},
            "no model is called 'vit_tny_patch16_224'; did you",
        ),
        ({"model.squeeze": "median"}, "squeeze is 'median'; it must be one of mean, max, entropy"),
        ({"distributed": True}, "config.distributed is True, but jax finds no cluster"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    say, tmp_path, monkeypatch, changes, sentence
):
    (tmp_path / "empty").mkdir()
    tree_of_folders(tmp_path)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    changes = {name: str(value).format(tmp=tmp_path) for name, value in changes.items()}
    status, out, err = say(tmp_path / "work", **changes)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sentence.format(tmp=tmp_path) in err
    assert not (tmp_path / "work").exists()


def test_a_work_folder_of_another_config_names_what_differs(straight, say):
    before = (straight[0] / "config.json").read_bytes()
    status, _, err = say(straight[0], **{"epochs": 11, "model.drop_path": 0.0, "data.threads": 0})
    assert status == 2
    assert "epochs is 8.0 there and 11.0 here; model.drop_path is 0.2 there and 0.0 here" in err
    assert (straight[0] / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ({"thesis.tex": "x"}, "holds something that is no run (thesis.tex); choose another"),
        ({"config.json": "{}"}, "config.json or provenance.json in work folder"),
        ({"config.json": "[half"}, "config.json or provenance.json in work folder"),
        (None, "is a file; choose another --workdir"),
    ],
)
def test_a_work_folder_that_is_something_else(say, tmp_path, held, sentence):
    workdir = tmp_path / "work"
    if held is None:
        workdir.touch()
    else:
        workdir.mkdir()
        for name, text in held.items():
            (workdir / name).write_text(text)
    status, _, err = say(workdir)
    assert status == 2
    assert sentence in err
    assert held is None or sorted(os.listdir(workdir)) == sorted(held)


def test_a_start_that_was_killed_at_once_is_no_obstacle(straight, tmp_path):
    """A log of the shell, and provenance.json without config.json."""
    shutil.copy(straight[0] / "provenance.json", tmp_path)
    (tmp_path / "train.log").touch()
    (tmp_path / ".lock").touch()
    config = from_dict(json.loads((straight[0] / "config.json").read_text()))
    assert _check_workdir(config, open_dataset(config.data.path), tmp_path) is None


def test_a_bad_command_as_a_process(tmp_path):
    """The whole way once: status 2, one line, nothing made."""
    command = [sys.executable, "-m", "bcvit_jax.main", "--config=configs/base.py"]
    command += [f"--workdir={tmp_path / 'work'}", "--config.data.path=data/lmu-is-not-here"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: There is no data set at data/lmu-is-not-here: build one")
    assert list(tmp_path.iterdir()) == []

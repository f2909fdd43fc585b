"""metrics.jsonl keeps what belongs to the run; progress in a log file is a few lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bcvit_jax.journal import Journal, progress


def steps(path: Path, fold: str) -> list[int]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["step"] for line in lines if line["fold"] == fold]


@pytest.fixture
def journal(tmp_path):
    """A journal with steps 10 to 40 of two folds, opened again."""
    before = Journal(tmp_path)
    for fold in ("fold0", "fold1"):
        before.start(fold, 0)
        for step in (10, 20, 30, 40):
            before.write(fold, step, {"loss": 1 / 3})
    before.flush()
    before.close()
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def test_what_came_after_the_checkpoint_is_forgotten(journal):
    journal.start("fold1", 20)
    assert steps(journal.path, "fold0") == [10, 20, 30, 40]
    assert steps(journal.path, "fold1") == [10, 20]
    journal.write("fold1", 30, {"loss": 0.5, "top1": 0.25})
    last = json.loads(journal.path.read_text().splitlines()[-1])
    assert last == {"fold": "fold1", "step": 30, "loss": 0.5, "top1": 0.25}
    assert len(list(journal.workdir.glob("tensorboard/fold1/events*"))) >= 1


def test_boards_do_not_load_pytorch_and_do_not_hide_it(tmp_path):
    pytest.importorskip("torch")
    code = (
        "import sys; from pathlib import Path; from bcvit_jax.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); journal.start('fold0', 0)\n"
        "journal.write('fold0', 1, {'loss': 0.5}); journal.close()\n"
        "print('torch' in sys.modules); import torch; print(torch.tensor(1).item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split() == ["False", "1"]


def test_half_a_line_of_a_killed_run_is_dropped(journal):
    with open(journal.path, "a") as file:
        file.write('{"fold": "fold1", "st')
    journal.start("fold1", 40)
    assert steps(journal.path, "fold1") == [10, 20, 30, 40]
    journal.write("fold1", 50, {"loss": 0.5})
    assert steps(journal.path, "fold1") == [10, 20, 30, 40, 50]


def test_numbers_come_back_exactly(journal):
    journal.start("fold0", 40)
    assert json.loads(journal.path.read_text().splitlines()[0])["loss"] == 1 / 3


def test_progress_in_a_log_file_is_a_few_whole_lines(capfd):
    with progress("fold0", 1000, "img", initial=200) as bar:
        for _ in range(800):
            bar.update(1)
        bar.set_postfix(loss="0.500", refresh=False)
    _, err = capfd.readouterr()
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("fold0: 200 of 1000 img, ")
    assert lines[1].startswith("fold0: 1000 of 1000 img, ")
    assert "img/s" in lines[1] and lines[1].endswith(" left, loss=0.500")

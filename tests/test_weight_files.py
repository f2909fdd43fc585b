"""Files of weights: none of their code runs, and all that does not fit is told."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from data_prep.detector import Detector, create_detector
from data_prep.errors import BuildError
from data_prep.weight_files import load_weights, read_weights
from tests.smears import TINY, equal_weights, tiny_torch


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


def fresh(seed: int = 0) -> Detector:
    return create_detector(TINY, ("WBC", "RBC"), "none", seed=seed)


class Code:
    """What a pickle would execute."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def bad_weights(folder: Path) -> dict[str, str]:
    """Files that are no weights, and a part of the sentence on each."""
    code = Code(folder / "executed")
    tensors = {"a": torch.zeros(300)}
    torch.save({"a": torch.zeros(3), "b": code}, folder / "code.pth")
    (folder / "raw.pt").write_bytes(pickle.dumps({"model": code}))
    (folder / "old.bin").write_bytes(pickle.dumps(code, protocol=2))
    (folder / "renamed.safetensors").write_bytes(pickle.dumps(code))
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    torch.save([torch.zeros(3)], folder / "list.pth")
    torch.save(tensors, folder / "whole.pth")
    (folder / "half.pth").write_bytes((folder / "whole.pth").read_bytes()[:500])
    (folder / "half.safetensors").write_bytes(save(tensors)[:-10])
    (folder / "head.safetensors").write_bytes(save(tensors)[:5])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_bytes(b"hello world, this is text")
    (folder / "a folder.pth").mkdir()
    more, half = "more than weights", "is no whole file of weights"
    return {
        "code.pth": more,
        "raw.pt": more,
        "old.bin": more,
        "module.pth": more,
        "renamed.safetensors": half,
        "list.pth": "holds no state_dict",
        "half.pth": half,
        "half.safetensors": half,
        "head.safetensors": half,
        "empty.safetensors": half,
        "empty.pth": half,
        "text.pth": half,
        "a folder.pth": "is not there",
        "nowhere.pth": "is not there",
    }


def test_what_is_no_file_of_weights_is_refused_and_not_executed(tmp_path):
    for name, why in bad_weights(tmp_path).items():
        with pytest.raises(BuildError, match=why) as told:
            create_detector(TINY, ("WBC",), str(tmp_path / name))
        assert name in str(told.value) and "\n" not in str(told.value), name
    assert not (tmp_path / "executed").exists()
    with open(tmp_path / "raw.pt", "rb") as file:
        pickle.load(file)  # the proof that it would have been
    assert (tmp_path / "executed").exists()


def test_damaged_bytes_of_a_pickle_are_one_sentence(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
        content = whole.copy()
        content[rng.integers(0, min(len(whole), 400), 2)] = rng.integers(0, 256, 2)
        path.write_bytes(content.tobytes())
        try:
            read_weights(path)
        except BuildError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file_are_taken_but_for_another_number_of_classes(tmp_path, suffix):
    path, first = tmp_path / f"weights{suffix}", fresh(seed=5)
    tensors = {name: value.contiguous() for name, value in first.model.state_dict().items()}
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        path.write_bytes(save(tensors))
    same = create_detector(TINY, ("A", "B"), str(path))
    assert equal_weights(same.model, first.model)
    three = create_detector(TINY, ("A", "B", "C"), str(path))
    ours, theirs = three.model.state_dict(), first.model.state_dict()
    head = "roi_heads.box_predictor."
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if not n.startswith(head))
    assert ours[f"{head}cls_score.weight"].shape == (4, 64)


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    made = fresh()
    tensors = dict(made.model.state_dict())
    tensors["backbone.layers.0.weight"] = torch.zeros(1, 2)
    del tensors["backbone.layers.3.bias"]
    tensors["stranger"] = torch.zeros(1)
    with pytest.raises(BuildError) as told:
        load_weights(made.model, tensors, "file.pth")
    text = str(told.value)
    assert "backbone.layers.0.weight: (1, 2), not (16, 3, 3, 3)" in text
    assert "backbone.layers.3.bias: is missing" in text
    assert "stranger: is not part of the network" in text

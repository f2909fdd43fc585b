"""The detector: what is saved is what is loaded, files are judged before they are used."""

import json
import weakref
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.ops import FrozenBatchNorm2d

from data_prep import detector as detection
from data_prep.detect import SMALL
from data_prep.detector import create_detector, detect, load_detector, predict_fields, two_views
from data_prep.errors import BuildError
from tests.smears import TINY, edit_json, equal_weights, tiny_torch, write_smears


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


def fresh(*labels: str, seed: int = 0, size: int | None = None) -> detection.Detector:
    return create_detector(TINY, labels or ("WBC", "RBC"), "none", size, seed)


def picture(seed: int = 0, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved detector of random weights."""
    detection.save_detector(fresh(), tmp_path / "saved", {"images": 3})
    return tmp_path / "saved"


@pytest.mark.parametrize("size", [None, 64])
def test_a_loaded_detector_finds_what_the_saved_one_found(size, tmp_path):
    made = fresh(size=size)
    saved = detection.save_detector(made, tmp_path, {"images": 3})
    loaded = load_detector(tmp_path)
    assert loaded.id == saved.id and loaded.id.startswith(TINY)
    assert loaded.labels == ("WBC", "RBC")
    # The second is so long that the limit of the longer side decides its size.
    pictures = [picture(), picture(1, 40, 200)]
    found = detect(loaded, pictures)
    assert found == detect(made, pictures) and all(found)
    assert {box.label for boxes in found for box in boxes} <= {"WBC", "RBC"}
    again = detection.save_detector(loaded, tmp_path / "again", {})
    assert again.id == saved.id


def test_a_published_network_is_loaded_with_its_frozen_norms(tmp_path, monkeypatch):
    make = getattr(torchvision.models.detection, SMALL)
    torch.manual_seed(1)
    published = make(weights=None, weights_backbone=None, num_classes=91).state_dict()
    for name, value in published.items():
        if name.endswith("running_var"):
            value.uniform_(1e-5, 1e-4)
    monkeypatch.setattr(
        torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: published
    )
    made = create_detector(SMALL, ("WBC",), "DEFAULT", 64)
    torchvision.models.detection.faster_rcnn.overwrite_eps(made.model, 0.0)  # as COCO_V1 does
    detection.save_detector(made, tmp_path, {})
    loaded = load_detector(tmp_path)
    norms = [m for m in loaded.model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {0.0}
    assert equal_weights(made.model, loaded.model)
    assert detect(made, [picture()]) == detect(loaded, [picture()])


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        ConnectionResetError("reset by peer"),
        IncompleteRead(b""),
        RuntimeError('invalid hash value (expected "907ea3f9", got "1")\nmore'),
    ],
)
def test_without_a_network_the_sentence_says_what_to_do(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(BuildError, match="cannot be downloaded") as told:
        create_detector(SMALL, ("WBC",), "DEFAULT")
    assert "--weights a local file, or none" in str(told.value) and "\n" not in str(told.value)


def test_names_that_are_not_known():
    with pytest.raises(BuildError, match=r"is none of .*: choose COCO_V1, DEFAULT, a file"):
        create_detector(SMALL, ("WBC",), "IMAGENET")
    with pytest.raises(BuildError, match="is unknown here: choose one of"):
        create_detector("os.system", ("WBC",), "none")
    with pytest.raises(BuildError, match="The size is 0, but must be from 32"):
        fresh(size=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": ["WBC"]}, "does not fit the network"),
        ({"labels": ["WBC", 3]}, "has no proper labels"),
        ({"labels": "WBC"}, "has no proper labels"),
        ({"architecture": "os.system"}, '"os.system" is unknown here'),
        ({"sha256": "0" * 64}, "not the file that detector.json was written with"),
        ({"size": "large"}, "has no proper size"),
        ({"size": 0}, "must be from 32"),
        ({"longest": None}, "has no proper longest"),
        ({"id": 3}, "has no proper id"),
    ],
)
def test_a_changed_card_is_refused(folder, change, why):
    edit_json(folder / "detector.json", **change)
    with pytest.raises(BuildError, match=why):
        load_detector(folder)


def test_a_changed_folder_is_refused(folder):
    weights, card = folder / "detector.safetensors", folder / "detector.json"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit
    weights.write_bytes(content)
    with pytest.raises(BuildError, match="is missing or not the file"):
        load_detector(folder)
    weights.unlink()
    with pytest.raises(BuildError, match="is missing or not the file"):
        load_detector(folder)
    for text in (card.read_text()[:40], "[1, 2]", ""):
        card.write_text(text)
        with pytest.raises(BuildError, match="is damaged"):
            load_detector(folder)
    card.unlink()
    with pytest.raises(BuildError, match="--detector needs the folder of a finished training"):
        load_detector(folder)


def test_a_card_of_the_first_version_is_read(folder):
    card = json.loads((folder / "detector.json").read_text())
    del card["longest"]
    (folder / "detector.json").write_text(json.dumps(card))
    assert load_detector(folder).model.transform.max_size == 2 * card["size"]


def test_predictions_come_in_order_whatever_the_batch(tmp_path):
    smears = write_smears(tmp_path / "smears", 5)
    made = fresh()
    paths = [(item.image, tmp_path / "smears" / item.image) for item in smears.fields]
    runs = [list(predict_fields(made, paths, size)) for size in (1, 2, 7)]
    assert [item.image for item in runs[0]] == [name for name, _ in paths]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert (one.image, one.width, one.height) == (other.image, 128, 96)
            first = np.array([box.corners for box in one.boxes])
            second = np.array([box.corners for box in other.boxes])
            np.testing.assert_allclose(first, second, atol=0.01)
    sure = list(predict_fields(made, paths, 2, min_score=0.6))
    for some, every in zip(sure, runs[0], strict=True):
        assert [box.score for box in some.boxes] == pytest.approx(
            [box.score for box in every.boxes if (box.score or 0) >= 0.6], abs=2e-4
        )


def test_ten_thousand_images_wait_in_no_memory(monkeypatch):
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def read(path: Path) -> torch.Tensor:
        alive.add(made := torch.zeros(3, 8, 8))
        return made

    def found(detector, pictures):
        nonlocal most
        most = max(most, len(alive))
        return [() for _ in pictures]

    monkeypatch.setattr(detection, "read_picture", read)
    monkeypatch.setattr(detection, "detect", found)
    paths = ((str(number), Path("x")) for number in range(10_000))
    names = [item.image for item in predict_fields(fresh(), paths, 4)]
    assert names == [str(number) for number in range(10_000)]
    assert 4 <= most <= 12  # a batch in use, one or two that wait


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    write_smears(tmp_path / "smears", 1)
    whole = (tmp_path / "smears/00.png").read_bytes()
    (tmp_path / "smears/half.png").write_bytes(whole[: len(whole) // 2])
    made = fresh()
    for name, why in (("nowhere.png", "cannot be read"), ("half.png", "cannot be decoded")):
        with pytest.raises(BuildError, match=f"{name} {why}"):
            list(predict_fields(made, [(name, tmp_path / "smears" / name)]))


def test_boxes_of_a_turned_photograph_are_in_the_frame_that_is_shown(tmp_path):
    write_smears(tmp_path / "smears", 1)
    upright = Image.open(tmp_path / "smears/00.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.png", exif=exif)
    assert stored.size == (96, 128)
    paths = [("a", tmp_path / "smears/00.png"), ("b", tmp_path / "turned.png")]
    one, other = predict_fields(fresh(), paths, batch_size=1)
    assert (other.width, other.height) == (128, 96)
    assert one.boxes and one.boxes == other.boxes


def test_strides_are_not_guessed_from_a_small_first_picture():
    made = create_detector(SMALL, ("WBC",), "none", 32)
    detect(made, [picture(7, 20, 128)])
    assert made.model.roi_heads.box_roi_pool.scales == [1 / 32, 1 / 32]


def test_boxes_end_at_the_border_of_the_picture():
    result = {
        "boxes": torch.tensor([[1.0, 2.0, 10.00006, 8.0001], [3.0, 3.0, 3.00001, 5.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.912345, 0.5]),
    }
    (box,) = detection._boxes(result, ("WBC", "RBC"), 10, 8)
    assert (box.label, box.corners, box.score) == ("RBC", (1, 2, 10, 8), 0.9123)


def test_the_second_view_is_the_mirror_image_turned_back():
    made, shown = fresh(), picture(3)
    plain, back, feature = two_views(made, shown)
    mirrored_plain, mirrored_back, other = two_views(made, shown.flip(-1))

    def flipped(boxes):
        return np.array([(128 - box.x1, box.y0, 128 - box.x0, box.y1) for box in boxes])

    assert plain and plain != back
    np.testing.assert_allclose(flipped(mirrored_plain), [box.corners for box in back], atol=0.001)
    np.testing.assert_allclose(flipped(mirrored_back), [box.corners for box in plain], atol=0.001)
    assert feature.shape == (32,) and np.linalg.norm(feature) == pytest.approx(1)
    assert feature @ other < 1
    assert not made.model.backbone._forward_hooks

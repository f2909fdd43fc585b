"""The plan of a data set: groups across donors and turned copies, notes, bad files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.errors import BuildError
from data_prep.plan import Plan, make_plan, plan_images
from data_prep.scan import scan_files
from data_prep.tree import find_images


def write_tree(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """A PNG of noise, 6 × 8 pixels, for each image of each class."""
    rng = np.random.default_rng(seed)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def planned(tree: Path, **choices) -> Plan:
    spool = tree.parent / "spool"
    spool.mkdir(exist_ok=True)
    return make_plan(tree, spool, workers=1, **choices)


def turn(tree: Path, source: str, target: str, turns: int = 1) -> None:
    pixels = np.rot90(np.asarray(Image.open(tree / source)), turns)
    Image.fromarray(pixels).save(tree / target)


def test_every_image_is_planned_with_its_own_group(tmp_path):
    plan = planned(write_tree(tmp_path / "tree", {"BAS": 10, "own": 5}))
    assert plan.class_names == ("BAS", "own")
    assert plan.counts().tolist() == [[2] * 5, [1] * 5]
    assert [example.group for example in plan.examples] == [e.source for e in plan.examples]
    assert (plan.group_kind, plan.notes, plan.skipped) == ("image", [], [])
    assert plan.table().splitlines()[1].split() == "BAS basophil 2 2 2 2 2 10".split()


def test_a_folder_one_level_too_high_is_told_of(tmp_path):
    """Its one folder is one class, which no classifier can be trained on."""
    write_tree(tmp_path / "tree" / "cells", {"BAS": 5, "EOS": 5})
    (note,) = planned(tmp_path / "tree").notes
    assert "one class only, cells" in note and str(tmp_path / "tree" / "cells") in note


def test_turned_copies_share_a_group_and_a_fold(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 9, "B": 9})
    turn(tree, "A/00.png", "A/50.png", 1)
    turn(tree, "A/00.png", "A/51.png", 2)
    plan = planned(tree)
    twins = [e for e in plan.examples if e.source in ("A/00.png", "A/50.png", "A/51.png")]
    assert {e.group for e in twins} == {"A/00.png"}
    assert len({e.fold for e in twins}) == 1
    assert "3 images are 1 up to flips and turns" in plan.notes[0]


def test_equal_images_with_different_labels_are_listed(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 9, "B": 9})
    turn(tree, "A/03.png", "B/77.png", 3)
    plan = planned(tree)
    assert "A/03.png (A) = B/77.png (B)" in plan.notes[1]
    assert len({e.group for e in plan.examples if e.source in ("A/03.png", "B/77.png")}) == 1


def write_groups(tree: Path, kind: str, donors: int) -> Path:
    sources = sorted(path.relative_to(tree).as_posix() for path in tree.glob("*/*.png"))
    rows = [f"{source},d{number % donors}\n" for number, source in enumerate(sources)]
    table = tree.parent / "table.csv"
    table.write_text(f"path,{kind}\n" + "".join(rows))
    return table


@pytest.mark.parametrize("kind", ["donor", "slide"])
def test_donors_and_slides_stay_whole(tmp_path, kind):
    tree = write_tree(tmp_path / "tree", {"A": 20, "B": 20})
    plan = planned(tree, groups=write_groups(tree, kind, 10))
    homes = {(example.group, example.fold) for example in plan.examples}
    assert len(homes) == 10
    assert plan.counts().tolist() == [[4] * 5] * 2
    metadata = plan.metadata("test", "0")
    assert (metadata["group_kind"], metadata["donor_separated"]) == (kind, kind == "donor")


def test_groups_in_the_tree_are_used_unasked(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 20})
    write_groups(tree, "donor", 5).rename(tree / "groups.csv")
    assert planned(tree).group_kind == "donor"


def test_donors_that_share_a_turned_image_are_joined(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 20})
    table = write_groups(tree, "donor", 10)
    turn(tree, "A/00.png", "A/01.png")
    plan = planned(tree, groups=table)
    assert {e.group for e in plan.examples if e.source[:4] in ("A/00", "A/01")} == {"d0 + d1"}
    assert len({e.group for e in plan.examples}) == 9
    assert plan.notes[-1].endswith("d0 + d1")


def test_crops_of_one_field_stay_together_and_equal_fields_too(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 20})
    turn(tree, "A/00.png", "A/19.png")  # of the fields f0 and f9
    found, _ = find_images(tree)
    field_of = {source: f"f{number // 2}" for number, source in enumerate(found["A"])}
    (tmp_path / "spool").mkdir()
    plan = plan_images(tree, found, tmp_path / "spool", "image", field_of, workers=1)
    groups = {example.source: example.group for example in plan.examples}
    assert groups == field_of | {"A/18.png": "f0", "A/19.png": "f0"}
    assert len({(example.group, example.fold) for example in plan.examples}) == 9
    assert [note.split(":")[0] for note in plan.notes] == ["2 images are 1 up to flips and turns"]


def test_fewer_groups_than_folds_are_refused(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 20})
    with pytest.raises(BuildError, match=r"3 separate donors cannot fill 5 folds"):
        planned(tree, groups=write_groups(tree, "donor", 3))
    assert planned(tree, folds=3, groups=write_groups(tree, "donor", 3)).folds == 3
    with pytest.raises(BuildError, match="--folds is 1"):
        planned(tree, folds=1)


def test_classes_too_small_for_the_folds_are_named(tmp_path):
    plan = planned(write_tree(tmp_path / "tree", {"A": 10, "B": 2, "C": 3}))
    assert "fill 5 folds" in plan.notes[0] and "B (2), C (3)" in plan.notes[0]
    assert sorted(plan.counts()[1]) == [0, 0, 0, 1, 1]


def test_small_classes_are_dropped_by_name(tmp_path):
    plan = planned(write_tree(tmp_path / "tree", {"A": 10, "B": 2, "C": 3}), min_images=3)
    assert plan.class_names == ("A", "C")
    assert plan.notes[0] == "Classes with fewer than 3 images are left out: B (2)."


def test_bad_files_are_listed_at_once_or_skipped(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 6, "B": 2, "C": 6})
    (tree / "A/empty.png").touch()
    (tree / "A/text.png").write_text("not a picture")
    (tree / "A/moved.png").symlink_to("nowhere.png")
    (tree / "B/film.gif").write_bytes(b"GIF89a")
    (tree / "C/00.png").write_bytes((tree / "C/01.png").read_bytes()[:60])
    with pytest.raises(BuildError) as error:
        planned(tree)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("5 of 18 files cannot be used")
    names = ["A/empty.png", "A/moved.png", "A/text.png", "B/film.gif", "C/00.png"]
    assert [line.split(":")[0].strip() for line in lines] == names
    plan = planned(tree, skip_bad=True, min_images=3)
    assert [scan.source for scan in plan.skipped] == names
    assert plan.class_names == ("A", "C")
    assert len(plan.examples) == 11


def test_a_tree_of_bad_files_only_is_refused(tmp_path):
    (tmp_path / "tree" / "A").mkdir(parents=True)
    (tmp_path / "tree" / "A" / "1.png").touch()
    with pytest.raises(BuildError, match="no image is left"):
        planned(tmp_path / "tree", skip_bad=True)


def test_the_plan_is_the_same_from_several_processes(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 40, "B": 40})
    sources = sorted(path.relative_to(tree).as_posix() for path in tree.glob("*/*.png"))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = scan_files(tree, sources, tmp_path / "one", workers=1)
    two = scan_files(tree, sources, tmp_path / "two", workers=2)
    for first, second in zip(one, two, strict=True):
        assert (first.source, first.sha256, first.pixels) == (
            second.source,
            second.sha256,
            second.pixels,
        )
        assert first.png and second.png and first.png.read() == second.png.read()


def test_the_fingerprint_follows_content_and_folds(tmp_path):
    tree = write_tree(tmp_path / "tree", {"A": 10, "B": 10})
    prints = [planned(tree, **c).metadata("", "")["content_sha256"] for c in ({}, {}, {"seed": 1})]
    assert prints[0] == prints[1] != prints[2]
    turn(tree, "A/00.png", "A/00.png", 0)
    Image.new("RGB", (3, 3)).save(tree / "A/01.png")
    assert planned(tree).metadata("", "")["content_sha256"] not in prints

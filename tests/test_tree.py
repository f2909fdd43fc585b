"""Class folders and groups.csv: what counts as an image, and what is told about the rest."""

from pathlib import Path

import pytest

from data_prep.cells import CELL_NAMES
from data_prep.errors import BuildError
from data_prep.tree import choose_classes, find_images, read_groups


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_the_codes_mean_what_the_data_set_of_the_paper_says():
    assert CELL_NAMES["MYO"] == "myeloblast"
    assert CELL_NAMES["MYB"] == "myelocyte"
    assert CELL_NAMES["MMZ"] == "metamyelocyte"
    codes = "NGS LYT MYO MON EOS NGB BAS EBO PMO MYB MOB PMB KSC MMZ LYA".split()
    assert sorted(CELL_NAMES) == sorted(codes)
    assert len(set(CELL_NAMES.values())) == len(codes)


def test_images_are_found_and_other_files_passed_over(tmp_path):
    names = ("b/2.PNG", "b/1.tiff", "a/deep/3.jpeg", "a/x.gif", "a/.DS_Store", "b/._1.png")
    touch(tmp_path, *names, "b/Thumbs.db", "labels.csv", "a/README", ".git/1.png")
    found, notes = find_images(tmp_path)
    assert found == {"a": ["a/deep/3.jpeg", "a/x.gif"], "b": ["b/1.tiff", "b/2.PNG"]}
    assert notes == []


def test_stray_images_and_empty_folders_are_named(tmp_path):
    touch(tmp_path, "BAS/1.png", "EOS/notes.txt", "whole_slide.tif")
    _, notes = find_images(tmp_path)
    assert notes == [
        "Folders without images are left out: EOS.",
        "Images in no class folder are left out: whole_slide.tif.",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "has no class folders with images"),
        (["BAS/notes.txt"], "has no class folders with images"),
        (["train/BAS/1.png", "test/BAS/2.png"], "are splits"),
    ],
)
def test_a_tree_without_classes_is_refused(tmp_path, names, message):
    with pytest.raises(BuildError, match=message):
        find_images(touch(tmp_path, *names))


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(BuildError, match="is not a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(BuildError, match="has no class folders"):
        find_images(tmp_path)


FOUND = {"A": ["A/1", "A/2", "A/3"], "B": ["B/1"], "C": ["C/1", "C/2"]}


@pytest.mark.parametrize(
    ("classes", "min_images", "kept", "dropped"),
    [((), 0, "ABC", ""), (("A", "C"), 0, "AC", ""), ((), 2, "AC", "B"), (("B", "C"), 2, "C", "B")],
)
def test_classes_are_chosen_by_name_and_by_size(classes, min_images, kept, dropped):
    chosen, small = choose_classes(FOUND, classes, min_images)
    assert ("".join(chosen), "".join(small)) == (kept, dropped)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(BuildError, match="names D, but the class folders are A, B, C"):
        choose_classes(FOUND, ("A", "D"), 0)
    with pytest.raises(BuildError, match="--min-images 9 leaves no class: the largest has 3"):
        choose_classes(FOUND, (), 9)


@pytest.mark.parametrize(
    ("header", "kind"),
    [("path,donor", "donor"), ("path,patient", "donor"), ("\ufeffpath,slide,note", "slide")],
)
def test_groups_are_read_by_the_name_of_their_column(tmp_path, header, kind):
    table = tmp_path / "groups.csv"
    table.write_text(f"{header}\nA/1.png,d1\nB\\2.png, d2\nC/3.png,d2\n", encoding="utf-8")
    sources = ["A/1.png", "B/2.png", "C/3.png"]
    expected = dict(zip(sources, ["d1", "d2", "d2"], strict=True))
    assert read_groups(table, sources, sources[:2]) == (kind, expected)


def test_all_faults_of_the_groups_are_listed_at_once(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("path,donor\nA/1.png,d1\nA/1.png,d2\nA/2.png,\nA/9.png,d1\n")
    with pytest.raises(BuildError) as error:
        read_groups(table, ["A/1.png", "A/2.png", "A/3.png"], ["A/1.png", "A/2.png", "A/3.png"])
    assert str(error.value).splitlines()[1:] == [
        "  A/1.png: has two donors, d1 and d2",
        "  A/2.png: has no donor",
        "  A/9.png: is not an image of the tree",
        "  A/3.png: is not in the table",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\)"),
        ("file,donor\n", "has the columns file, donor"),
        ("path,donor,slide\n", "must be path,donor or path,slide"),
        ("path,don\u00f6r\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_a_table_of_another_kind_is_refused(tmp_path, text, message):
    table = tmp_path / "groups.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(BuildError, match=message):
        read_groups(table, [], [])

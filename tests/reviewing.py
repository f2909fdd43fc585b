"""A project of review as tests need it: its images, its commands, and the person who corrects."""

import shutil
from pathlib import Path

from data_prep import review
from tests.smears import edit_json

COUNT = 12  # of its images


def new_project(rendered: Path, folder: Path) -> Path:
    """Where a project will be; images/ beside it has the fields, one of them in a sub-folder."""
    shutil.copytree(rendered, folder / "images")
    (folder / "images/deep").mkdir()
    (folder / "images/00.png").rename(folder / "images/deep/00.png")
    return folder / "review"


def run(project: Path, command: str, *more: str | Path) -> int:
    images = ("--images", project.parent / "images") if command == "select" else ()
    arguments = [command, "--project", project, *images, *more]
    return review.main([*map(str, arguments)])


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def tick(path: Path, *boxes: tuple[float, float, float, float]) -> None:
    """What a person does in Labelme: true boxes, and the flag."""
    shapes = [
        {"label": "WBC", "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle", "flags": {}}
        for x0, y0, x1, y1 in boxes
    ]
    edit_json(path, shapes=shapes, flags={"reviewed": True})


def files_of(project: Path, number: int = 1) -> list[Path]:
    return sorted((project / f"round{number:02}").rglob("[!.]*.json"))

"""The whole chain on real images: label a few fields, detect, crop, build, and compare.

    python -m tests.benchmarks.chain --fields pbc_boxes --cells pbc10 --out DIR [--seeds 3]

Boxes from the ground truth stand in for the person who corrects proposals in Labelme. The fields
that the detector learns from are not among the cells' images. Run again, it goes on where it was.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from data_prep.boxes import read_boxes, read_labelme, write_labelme
from data_prep.coco import coco_from_fields
from data_prep.detect import SMALL
from data_prep.fields import FieldSet, Findings
from data_prep.files import write_json
from data_prep.rounds import read_rounds

RECIPE = "configs/pbc10.py:short,plain"
CROPPED = ("--config.data.centre_crop=1.0",)


def main() -> None:
    """Run all steps, each only if its result is not there yet, and print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chain")
    parser.add_argument("--fields", type=Path, required=True, help="with instances.json, images/")
    parser.add_argument("--cells", type=Path, required=True, help="class folders, a cell a field")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("detect", "compare"), help="the first or second half")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.only != "compare":
        propose_boxes(options.fields, options.cells, out)
        crop_and_build(options.cells, out)
    if options.only != "detect":
        compare(out, options.seeds)


def propose_boxes(fields: Path, cells: Path, out: Path) -> None:
    """40 fields at random, train, 40 chosen by the detector, train again; find the cells."""
    truth = read_boxes(fields / "instances.json").of_labels(["WBC"])
    known = {path.name for path in cells.rglob("*.jpg")}
    truth = truth.of_images(item.image for item in truth.fields if item.image not in known)
    smears, project = out / "fields", out / "review"
    once(smears, lambda: link(fields / "images", [item.image for item in truth.fields], smears))
    for number, epochs in ((1, 30), (2, 20)):
        chooser = ("--detector", project / "detector01") if number == 2 else ()
        round_folder, detector = project / f"round{number:02}", project / f"detector{number:02}"
        select = ("review", "select", "--images", smears, "--project", project, *chooser)
        once(round_folder, lambda command=select: data_prep(*command))
        stand_in(truth, project, number)
        data_prep("review", "accept", "--project", project)
        train = ("--architecture", SMALL, "--weights", "none", "--epochs", epochs)
        boxes = ("--images", smears, "--boxes", project / "labelled.json")
        command = ("detect", "train", *boxes, *train, "--out", detector)
        once(detector / "detector.json", lambda command=command: data_prep(*command))
        judge(truth, smears, project, number)
    data_prep("review", "status", "--project", project)
    found = out / "found.json"
    predict = ("detect", "predict", "--images", cells, "--detector", project / "detector02")
    once(found, lambda: data_prep(*predict, "--out", found))


def stand_in(truth: FieldSet, project: Path, number: int) -> None:
    """Do what a person does in Labelme: the true boxes, and the flag "reviewed"."""
    one = read_rounds(project)[number - 1]
    for item in truth.of_images(one.images).fields:
        path = (one.folder / item.image).with_suffix(".json")
        own = read_labelme(path, one.folder, Findings()).own["labelme"]
        boxes = tuple(replace(box, own={}) for box in item.boxes)
        done = replace(item, boxes=boxes, own={"labelme": {**own, "flags": {"reviewed": True}}})
        write_labelme(FieldSet((done,), truth.labels), one.folder, overwrite=True)


def judge(truth: FieldSet, smears: Path, project: Path, number: int) -> None:
    """Average precision on the fields that were in neither round, the same for both detectors."""
    detector = project / f"detector{number:02}"
    if number == 1:  # the second round is not chosen yet: a part that it cannot take
        return
    used = {image for one in read_rounds(project) for image in one.images}
    rest = project.parent / "judged_on.txt"
    names = [item.image for item in truth.fields if item.image not in used]
    rest.write_text("\n".join(names) + "\n")
    boxes = project.parent / "truth.json"
    write_json(boxes, coco_from_fields(truth), overwrite=True)
    for folder in (project / "detector01", detector):
        command = ("detect", "evaluate", "--images", smears, "--boxes", boxes, "--only", rest)
        command += ("--detector", folder, "--out", folder)
        once(folder / "evaluation.json", lambda command=command: data_prep(*command))


def crop_and_build(cells: Path, out: Path) -> None:
    """Crops and their data set; the same fields whole, in the same folds."""
    crops = out / "crops"
    crop = ("crop", "--boxes", out / "found.json", "--images", cells, "--out", crops)
    once(crops, lambda: data_prep(*crop))
    with (crops / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    total = len(list(cells.rglob("*.jpg")))
    held = {row["source"] for row in rows}
    single = sorted(row["source"] for row in rows if row["label"])
    print(
        f"{len(held)} of {total} fields yield a cell ({len(held) / total:.2%}), {len(single)} "
        f"exactly one ({len(single) / total:.2%})."
    )
    once(out / "whole", lambda: link(cells, single, out / "whole"))
    manifest = ("build", "crops", "--manifest", crops / "manifest.csv")
    once(out / "data_crops", lambda: data_prep(*manifest, "--out", out / "data_crops"))
    folder = ("build", "folder", "--images", out / "whole")
    once(out / "data_whole", lambda: data_prep(*folder, "--out", out / "data_whole"))


def compare(out: Path, seeds: int) -> None:
    """RECIPE on both data sets, fold 0, two runs side by side, a core each."""
    arms = {"whole": (), "crops": CROPPED}
    results: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        running = []
        for core, (arm, extra) in enumerate(arms.items()):
            workdir = out / f"run-{arm}-{seed}"
            command = [sys.executable, "-m", "bcvit_jax.main", f"--config={RECIPE}"]
            command += [f"--config.data.path={out / f'data_{arm}'}", f"--workdir={workdir}"]
            command += [f"--config.seed={seed}", f"--config.data.cache={out / 'cache'}", *extra]
            if not (workdir / "report.json").exists():
                log = (out / f"{workdir.name}.log").open("w")
                cores = sorted(os.sched_getaffinity(0))
                pin = {cores[core % len(cores)]}
                running.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=log, preexec_fn=lambda p=pin: pin_to(p)
                    )
                )
        if any(process.wait() for process in running):
            sys.exit("A training failed: see its log.")
        for arm in arms:
            report = json.loads((out / f"run-{arm}-{seed}" / "report.json").read_text())
            results[arm].append(report["pooled"]["top1"])
    difference = np.array(results["crops"]) - np.array(results["whole"])
    half = stats.t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / seeds**0.5
    for arm, values in results.items():
        print(f"{arm:6} {' '.join(f'{value:.4f}' for value in values)}  mean {np.mean(values):.4f}")
    print(f"crops - whole: {difference.mean():+.4f} +/- {half:.4f} (95 %, {seeds} seeds)")


def pin_to(cores: set[int]) -> None:
    """Keep this process on these cores."""
    os.sched_setaffinity(0, cores)


def once(result: Path, make: Callable[[], None]) -> None:
    """Make a result that is not there yet."""
    if not result.exists():
        make()


def link(source: Path, names: list[str], folder: Path) -> None:
    """A folder of links to some of the files of another."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((source / name).resolve())


def data_prep(module: str, *arguments: object) -> None:
    """Run a command of data_prep."""
    command = [sys.executable, "-m", f"data_prep.{module}", *map(str, arguments)]
    print("$", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

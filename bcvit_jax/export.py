"""Export trained networks: `python -m bcvit_jax.export --workdir RUN --out DIR`.

The folder holds all that others need to use them; bcvit_jax/exported.py tells what lies in it.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bcvit_jax import __version__
from bcvit_jax.errors import RunError, UserError, fail

FORMATS = ("safetensors", "stablehlo")

_HELP = """\
Write the networks of a finished run into a folder: safetensors, config.json, model card, checksums.

  python -m bcvit_jax.export --workdir runs/mine --out exported/mine
  python -m bcvit_jax.export --workdir runs/seed0 runs/seed1 runs/seed2 --out exported/three

Several networks, of --fold all or of several runs, are an ensemble: predict averages their
probabilities, in as many times one network's time.

--format stablehlo adds network.stablehlo, the network without its weights as a program for CPU and
CUDA that needs jax, flatbuffers and safetensors alone (`jax.export.deserialize`); it takes the
weights of a safetensors file and images [b, s, s, 3] in [-1, 1] of any batch, and returns logits.
JAX reads such a file for about six months: it is for deployment, not for keeping.
"""


def export(workdirs: Sequence[Path], out: Path, formats: tuple[str, ...], fold: str) -> Path:
    """Write the networks of `fold` (`all`: of every finished fold) of runs to the folder `out`.

    Networks of several runs are an ensemble too. Errors: UserError where there is no such fold, or
    runs differ in network, preprocessing, classes or data set, or `out` holds something.
    """
    for name in formats:
        if name not in FORMATS:
            onnx = "; python -m bcvit_jax.export_onnx makes ONNX of the exported folder"
            more = onnx if name.lower() == "onnx" else ""
            raise UserError(f"--format has {name!r}; it must be of {', '.join(FORMATS)}{more}")
    # Here, so that --help answers without jax.
    from bcvit_jax import exported
    from bcvit_jax.model_card import model_card
    from bcvit_jax.trained import restore
    from bcvit_jax.weights import safetensors_bytes, to_flat

    exported.check_new(out)
    chosen = [_chosen(workdir, fold) for workdir in workdirs]
    class_names = _in_common(chosen)
    count = sum(len(entries) for _, _, entries in chosen)
    files: dict[str, bytes] = {}
    networks, model = [], None
    runs = zip(workdirs, chosen, strict=True)
    for place, (workdir, (config, report, entries)) in enumerate(runs):
        for entry in entries:
            network = restore(workdir, config, len(class_names), entry["fold"])
            model = network.program.model
            file = f"{entry['fold']}.safetensors" if count > 1 else "model.safetensors"
            if len(workdirs) > 1:
                file = f"run{place}-{file}"
            files[file] = safetensors_bytes(to_flat(network.variables), {"format": "bcvit"})
            scores = {key: entry[key] for key in ("top1", "macro_f1", "balanced_accuracy", "n")}
            made = {"file": file, "held_out": entry["fold"], "step": network.step}
            made |= _trained_on(config, report, entry["fold"])
            networks.append(made | {"seed": config.seed, **scores})
    config, report, _ = chosen[0]
    card = _card(workdirs, config, report, model, networks)
    files["config.json"] = (json.dumps(card, indent=1) + "\n").encode()
    files["preprocessor_config.json"] = _preprocessor(card["preprocessing"])
    pooled = _judged(workdirs, [[e["fold"] for e in entries] for _, _, entries in chosen])
    files["README.md"] = model_card(card, [report for _, report, _ in chosen], pooled).encode()
    if "stablehlo" in formats:
        files["network.stablehlo"] = stablehlo(model)
    exported.write_folder(out, files)
    return out


def _card(workdirs: Sequence[Path], config, report, model, networks) -> dict[str, Any]:
    """config.json: what the networks are, of the first run's settings and report."""
    from bcvit_jax import exported
    from bcvit_jax.models import architecture
    from bcvit_jax.run_files import read_json

    preprocessing = exported.preprocessing_of(config.data, model.image_size)
    dataset = report["run"]["dataset"]
    commits = {read_json(workdir / "provenance.json").get("commit"): None for workdir in workdirs}
    return {
        "format": exported.FORMAT,
        "version": __version__,
        "title": config.title,
        "network": config.model["name"],
        "architecture": architecture(model),
        "model": dataclasses.asdict(model),
        "class_names": report["class_names"],
        "preprocessing": dataclasses.asdict(preprocessing),
        "preprocessing_form": str(preprocessing.normalisation),
        "networks": networks,
        "parameters": report["run"]["training"]["parameters"],
        "dataset": {k: dataset.get(k) for k in ("fingerprint", "donor_separated", "group_kind")},
        "commit": ", ".join(map(str, commits)) if any(commits) else None,
    }


def _trained_on(config, report: Mapping[str, Any], held_out: str) -> dict[str, list[str]]:
    """`trained_on`: the folds that a network has seen; nothing where the report names no folds.

    Where it began with the weights of another training, these may have seen all but `held_out`.
    """
    folds: list[str] = list(report["run"]["dataset"].get("counts") or ())
    if not folds:
        return {}
    seen = [name for name in folds if name != held_out]
    if config.train_folds and not config.weights.path:
        seen = [folds[i] for i in config.train_folds]
    return {"trained_on": seen}


def _chosen(workdir: Path, fold: str) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """A run's settings, its report, and the report's entries of the folds to export."""
    from bcvit_jax.run_files import read_classifier, read_json

    config, report = read_classifier(workdir), read_json(workdir / "report.json")
    run = report.get("run") or {}
    if lacking := [part for part in ("config", "dataset", "training") if not run.get(part)]:
        raise UserError(
            f"{workdir / 'report.json'} does not tell the run's {' and '.join(lacking)}; start the "
            "run's own command once more, which trains nothing and writes the report anew"
        )
    names = [entry["fold"] for entry in report["folds"]]
    found = [entry for entry in report["folds"] if fold in ("all", "", entry["fold"])]
    if not found:
        raise UserError(f"--fold is {fold}; finished folds of {workdir}: {', '.join(names)}, all")
    if len(found) > 1 and not fold:
        raise UserError(
            f"{workdir} has {len(found)} finished folds; choose one with --fold "
            f"({', '.join(names)}), or all for an ensemble"
        )
    return config, report, found


def _in_common(chosen) -> tuple[str, ...]:
    """The class names; UserError where runs could not be averaged or their figures not be told."""
    from bcvit_jax.exported import preprocessing_of
    from bcvit_jax.program import network_config

    def told(config, report, _):
        names = tuple(report["class_names"])
        network = network_config(config, len(names))
        return {
            "network": network,
            "preprocessing": preprocessing_of(config.data, network.image_size),
            "classes": names,
            "data set": report["run"]["dataset"].get("fingerprint"),
        }

    first, *others = (told(*run) for run in chosen)
    for other in others:
        if differ := [name for name in first if first[name] != other[name]]:
            raise UserError(
                f"the runs of --workdir differ in {', '.join(differ)}; an ensemble needs runs that "
                "differ in seed, folds or training alone"
            )
    return first["classes"]


def _judged(workdirs: Sequence[Path], folds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Figures over every held-out cell, from the mean of the networks not trained on it."""
    from bcvit_jax.metrics import add, summarise
    from bcvit_jax.predictions import load_predictions

    whole = None
    for fold in dict.fromkeys(name for names in folds for name in names):
        found = [
            load_predictions(workdir / fold / "predictions")
            for workdir, names in zip(workdirs, folds, strict=True)
            if fold in names
        ]
        mean = sum(each.probabilities for each in found) / len(found)
        counts = dataclasses.replace(found[0], probabilities=mean).count()
        whole = counts if whole is None else add(whole, counts)
    assert whole is not None
    return summarise(whole, found[0].class_names)


def stablehlo(model) -> bytes:
    """The serialized program (flat weights, images [b, s, s, 3] in [−1, 1]) -> logits [b, c]."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from bcvit_jax.models import build
    from bcvit_jax.weights import name_of, shapes

    # For CPU and GPU alike: in bfloat16 a GPU takes an attention that no CPU has.
    model = dataclasses.replace(model, dtype="float32")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build(model, rngs=nnx.Rngs(0))))

    def logits(flat, images):
        params = jax.tree.map_with_path(lambda path, _: flat[name_of(path)], abstract)
        return nnx.merge(graph, params)(images).logits

    (batch,) = jax.export.symbolic_shape("b")
    side = model.image_size
    flat = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes(model).items()}
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    program = jax.export.export(jax.jit(logits), platforms=("cpu", "cuda"))(flat, images)
    return bytes(program.serialize())


def _preprocessor(preprocessing: Mapping[str, Any]) -> bytes:
    side = preprocessing["image_size"]
    values = {
        "crop_fraction_of_shorter_side": preprocessing["centre_crop"],
        "do_resize": True,
        "resample": 3,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_white_background": preprocessing["white_background"],
        "do_normalise_stain": preprocessing["normalise_stain"],
        "do_normalise_scale": preprocessing["normalise_scale"],
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.export",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        nargs="+",
        help="folder of a finished run; several are averaged",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make, or an empty one")
    parser.add_argument("--format", default="safetensors", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--fold", default="", help="the held-out fold, or all for an ensemble")
    chosen = parser.parse_args(arguments)
    formats = tuple(part for part in chosen.format.split(",") if part)
    try:
        out = export(chosen.workdir, chosen.out, formats, chosen.fold)
    except (UserError, RunError, OSError) as error:
        return fail(error)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

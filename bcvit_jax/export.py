"""Export trained networks: `python -m bcvit_jax.export --workdir RUN --out DIR`.

The folder holds all that others need to use them; bcvit_jax/exported.py tells what lies in it.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcvit_jax import __version__
from bcvit_jax.errors import RunError, UserError, fail
from bcvit_jax.normalisation import NUCLEI, NUCLEUS_SIZES, RED_CELLS

FORMATS = ("safetensors", "stablehlo")

_HELP = """\
Write the networks of a finished run into a folder: safetensors, config.json, model card, checksums.

--format stablehlo adds network.stablehlo, the network without its weights as a program for CPU and
CUDA that needs only jax (`jax.export.deserialize`); it takes the weights of a safetensors file and
images [b, s, s, 3] in [-1, 1] of any batch, and returns logits. JAX reads such a file for about six
months: it is for deployment, not for keeping.
"""


def export(workdir: Path, out: Path, formats: tuple[str, ...], fold: str) -> Path:
    """Write the networks of `fold` (`all`: of every finished fold) of a run to the folder `out`."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format has {name!r}; it must be of {', '.join(FORMATS)}")
    # Here, so that --help answers without jax.
    from bcvit_jax import exported
    from bcvit_jax.models import architecture
    from bcvit_jax.run_files import read_classifier, read_json
    from bcvit_jax.trained import restore
    from bcvit_jax.weights import safetensors_bytes, to_flat

    config = read_classifier(workdir)
    report, provenance = read_json(workdir / "report.json"), read_json(workdir / "provenance.json")
    found = [f for f in report["folds"] if fold in ("all", "", f["fold"])]
    names = [f["fold"] for f in report["folds"]]
    if not found:
        raise UserError(f"--fold is {fold}; finished folds of {workdir}: {', '.join(names)}, all")
    if len(found) > 1 and not fold:
        raise UserError(
            f"{workdir} has {len(found)} finished folds; choose one with --fold "
            f"({', '.join(names)}), or all for an ensemble"
        )
    class_names = tuple(report["class_names"])
    files: dict[str, bytes] = {}
    networks, model = [], None
    for entry in found:
        network = restore(workdir, config, len(class_names), entry["fold"])
        model = network.program.model
        file = "model.safetensors" if len(found) == 1 else f"{entry['fold']}.safetensors"
        files[file] = safetensors_bytes(to_flat(network.variables), {"format": "bcvit"})
        scores = {key: entry[key] for key in ("top1", "macro_f1", "balanced_accuracy", "n")}
        networks.append({"file": file, "held_out": entry["fold"], "step": network.step, **scores})
    assert model is not None
    preprocessing = exported.preprocessing_of(config.data, model.image_size)
    dataset = report["run"]["dataset"]
    card = {
        "format": exported.FORMAT,
        "version": __version__,
        "title": config.title,
        "network": config.model["name"],
        "architecture": architecture(model),
        "model": dataclasses.asdict(model),
        "class_names": class_names,
        "preprocessing": dataclasses.asdict(preprocessing),
        "networks": networks,
        "parameters": report["run"]["training"]["parameters"],
        "dataset": {k: dataset.get(k) for k in ("fingerprint", "donor_separated", "group_kind")},
        "commit": provenance.get("commit"),
    }
    files["config.json"] = (json.dumps(card, indent=1) + "\n").encode()
    files["preprocessor_config.json"] = _preprocessor(preprocessing)
    files["README.md"] = model_card(card, report).encode()
    if "stablehlo" in formats:
        files["network.stablehlo"] = stablehlo(model)
    exported.write_folder(out, files)
    return out


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


def _preprocessor(preprocessing) -> bytes:
    side = preprocessing.image_size
    values = {
        "image_processor_type": "ViTImageProcessor",
        "do_center_crop": preprocessing.centre_crop < 1,
        "crop_fraction_of_shorter_side": preprocessing.centre_crop,
        "do_resize": True,
        "resample": 3,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_white_background": preprocessing.white_background,
        "do_normalise_stain": preprocessing.normalise_stain,
        "do_normalise_scale": preprocessing.normalise_scale,
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def model_card(card: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """README.md of an exported folder, filled from the run's report.json."""
    model, run = card["model"], report["run"]
    pooled = report["pooled"]
    rows = "\n".join(
        f"| {row['name']} | {_figure(row['precision'])} | {_figure(row['recall'])} | "
        f"{_figure(row['f1'])} | {row['n']} |"
        for row in pooled["classes"]
    )
    folds = "\n".join(
        f"| {network['held_out']} | {_figure(network['top1'])} | {_figure(network['macro_f1'])} | "
        f"{network['n']} |"
        for network in card["networks"]
    )
    several = len(card["networks"]) > 1
    names = ", ".join(card["class_names"])
    classes = "class (all folds of the run)"
    kind = "An ensemble of networks, one a held-out fold" if several else "A network"
    ensemble = (
        "\nThe ensemble itself has no figure: every cell of the data set trained some of its "
        "networks.\n"
        if several
        else ""
    )
    training = run["config"]
    return f"""\
# {card["title"]}

{kind} that tells {len(card["class_names"])} classes of blood cells apart, trained with bcvit
{card["version"]} (Sun et al. 2022, doi 10.7507/1001-5515.202203008).

{report["notice"]}

## Details

- Input: {model["image_size"]}×{model["image_size"]} pixels, RGB in [−1, 1]{_normalised(card)}.
- {_sizes(card)}
- Classes: {names}.

## Uses

Research on pre-classified differentials that a person reviews. Probabilities are the softmax of the
logits and are not calibrated.

## Limits

{report["donor_statement"]} The figures say nothing of another laboratory's stain, camera or
patients; score the network there first (`python -m bcvit_jax.predict --data`). Whatever is none of
the classes gets one of them all the same.

## How to start

    python -m bcvit_jax.predict --model . IMAGES --out results.csv

```python
from bcvit_jax.exported import from_pretrained

classifier = from_pretrained(".")
step = classifier.predict_step()
images = classifier.preprocessing(picture)[None]  # uint8 [h, w, 3] -> [1, s, s, 3]
logits, kept = step(classifier.params, images)
```

`sha256sum -c {SUMS_NAME}` verifies the files.

## Training

{training["epochs"]} epochs, batch {training["batch_size"]}, {training["optimizer"]["name"]}, seed
{training["seed"]}. Data set: fingerprint `{card["dataset"]["fingerprint"]}`. Code: commit
`{card["commit"]}`.

## Evaluation

Cells of folds that the network was not trained on.

| fold | top-1 | macro-F1 | n |
|---|---|---|---|
{folds}
{ensemble}
| {classes} | precision | recall | F1 | n |
|---|---|---|---|---|
{rows}
"""


def _normalised(card: Mapping[str, Any]) -> str:
    preprocessing = card["preprocessing"]
    told = ""
    if preprocessing["white_background"]:
        told = """.
  First each channel becomes 240 t, where t is its value over the background's, the channel's 95th
  percentile in the whole picture (80 at least)"""
    if preprocessing.get("normalise_stain"):
        told += f""".
  Then the light absorbed, 1 − t in each channel of a pixel, is multiplied by a matrix [3, 3], the
  same in the whole picture, that brings the colour of its nucleus into the range from
  {_light(NUCLEI[0])} to {_light(NUCLEI[1])} and that of the red cells into the range from
  {_light(RED_CELLS[0])} to {_light(RED_CELLS[1])}, or towards it where much would have to change;
  bcvit_jax.normalisation.stain_map says how"""
    if preprocessing.get("normalise_scale"):
        low, high = NUCLEUS_SIZES
        told += f""".
  Of a picture whose nucleus is as large as a square of more than {high:g} (or less than {low:g}) of
  the shorter side more (or less) than usual is looked at: bcvit_jax.normalisation.Normalisation"""
    return told


def _light(absorbed) -> str:
    return f"({', '.join(f'{share:g}' for share in absorbed)})"


def _sizes(card: Mapping[str, Any]) -> str:
    """The network in a sentence."""
    model, parameters = card["model"], f"{card['parameters']:,} parameters a network"
    if card["architecture"] != "BCViT":
        return f"{card['network']} with {model['norm']} norm, {parameters}."
    return (
        f"{model['patch_size']}-pixel patches at stride {model['stride']}, width {model['width']}, "
        f"{model['depth']} blocks,\n  {model['heads']} heads, {parameters}, {model['activation']}."
    )


SUMS_NAME = "SHA256SUMS"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.export",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
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

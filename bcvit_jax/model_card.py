"""The model card of an exported folder, filled from the report of its run or runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax.exported import untrained_folds
from bcvit_jax.normalisation import NUCLEI, NUCLEUS_SIZES, RED_CELLS


def model_card(
    card: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], pooled: Mapping[str, Any]
) -> str:
    """README.md: `card` is config.json, `reports` the report.json of each run.

    `pooled` are the figures (`metrics.summarise`) over every held-out cell, judged by the networks
    that were not trained on it.
    """
    model, report, networks = card["model"], reports[0], card["networks"]
    folds = "\n".join(
        f"| {network['file']} | {network['held_out']} | {_figure(network['top1'])} | "
        f"{_figure(network['macro_f1'])} | {network['n']} |"
        for network in networks
    )
    several = len(networks) > 1
    names = ", ".join(card["class_names"])
    kind = "A network"
    ensemble, whose = "", "class"
    if several:
        kind = f"An ensemble of {len(networks)} networks, whose probabilities are averaged,"
        held_out = dict.fromkeys(network["held_out"] for network in networks)
        if len(held_out) == 1:
            folds += (
                f"\n| all together | {networks[0]['held_out']} | {_figure(pooled['top1'])} | "
                f"{_figure(pooled['macro_f1'])} | {pooled['n']} |"
            )
            whose = "class (all together)"
        else:
            ensemble = _no_figure(untrained_folds(networks, held_out))
            whose = "class (each cell by the networks that were not trained on it)"
    rows = "\n".join(
        f"| {row['name']} | {_figure(row['precision'])} | {_figure(row['recall'])} | "
        f"{_figure(row['f1'])} | {row['n']} |"
        for row in pooled["classes"]
    )
    training = "\n".join(f"- {_recipe(each['run']['config'])}" for each in reports)
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

`sha256sum -c SHA256SUMS` verifies the files.

## Training

{training}

Data set: fingerprint `{card["dataset"]["fingerprint"]}`. Code: commit `{card["commit"]}`.

## Evaluation

Cells of folds that the network was not trained on.

| network | fold | top-1 | macro-F1 | n |
|---|---|---|---|---|
{folds}
{ensemble}
| {whose} | precision | recall | F1 | n |
|---|---|---|---|---|
{rows}
"""


def _no_figure(untrained: Sequence[str]) -> str:
    """Why an ensemble of several folds has no figure; `untrained` are folds new to all of it."""
    if not untrained:
        return (
            "\nThe ensemble itself has no figure: every cell of the data set trained some of its "
            "networks.\n"
        )
    return (
        f"\nThe ensemble itself has no figure yet; {', '.join(untrained)} trained none of its "
        "networks and may be scored (`python -m bcvit_jax.predict --data`).\n"
    )


def _recipe(config: Mapping[str, Any]) -> str:
    """A run's training in a line."""
    return (
        f"{config['epochs']:g} epochs, batch {config['batch_size']}, "
        f"{config['optimizer']['name']}, seed {config['seed']}."
    )


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


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

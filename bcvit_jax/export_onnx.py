"""An exported network as ONNX: `python -m bcvit_jax.export_onnx --model DIR --out FILE.onnx`.

In an environment of its own (`pip install jax2onnx onnxruntime safetensors pillow`, and this
package with `--no-deps`): jax2onnx wants an older Orbax than training does.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import numpy as np

from bcvit_jax.errors import RunError, UserError, fail

TOLERANCE = 1e-4

_HELP = """\
Write FILE.onnx from a folder of python -m bcvit_jax.export, weights included. It takes `images`
[b, s, s, 3] in [-1, 1] of any batch and returns logits. onnxruntime runs it before it is written,
and its logits must equal the network's to 1e-4.
"""


def export_onnx(folder: Path, out: Path) -> float:
    """Write `out`; returns the largest difference of logits between onnxruntime and jax.

    Errors: UserError for what the user can mend, RunError where the numbers differ.
    """
    if out.suffix != ".onnx":
        raise UserError(f"--out is {out}; it must end in .onnx")
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out, or delete it")
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; in an environment of its own: pip install jax2onnx "
            "onnxruntime safetensors pillow, then this package with --no-deps"
        ) from None
    from bcvit_jax.exported import from_pretrained

    classifier = from_pretrained(folder)
    # onnxruntime has no bfloat16 products on a CPU.
    model = dataclasses.replace(classifier.model, dtype="float32")
    classifier = dataclasses.replace(classifier, model=model)
    side = classifier.model.image_size

    def logits(images):
        return classifier(classifier.params, images)[0]

    # What both say of names and shapes inside the graph is nothing that a person can mend.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = to_onnx(logits, [("b", side, side, 3)], model_name="bcvit", input_names=["images"])
    content = made.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    difference = 0.0
    for count in (1, 7):
        shape = (count, side, side, 3)
        images = np.random.default_rng(count).uniform(-1, 1, shape).astype(np.float32)
        (found,) = session.run(None, {"images": images})
        difference = max(difference, float(np.abs(found - np.asarray(logits(images))).max()))
    if not difference <= TOLERANCE:
        raise RunError(f"onnxruntime's logits differ by {difference:.2g} from jax's; not written")
    partial = out.with_name(f"{out.name}.partial")
    partial.write_bytes(content)
    partial.replace(out)
    return difference


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.export_onnx",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx")
    chosen = parser.parse_args(arguments)
    try:
        difference = export_onnx(chosen.model, chosen.out)
    except (UserError, RunError, OSError) as error:
        return fail(error)
    print(f"{chosen.out}: onnxruntime's logits differ from jax's by {difference:.1e} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

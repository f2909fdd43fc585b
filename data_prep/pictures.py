"""One image file as pixels for detection; what is wrong with it is a sentence."""

from pathlib import Path

import numpy as np

from data_prep.errors import BuildError
from data_prep.images import BadImage
from data_prep.scan import read_file


def read_pixels(path: Path) -> np.ndarray:
    """Pixels of an image file as it is shown (EXIF), uint8 [h, w, 3]; raises BuildError."""
    try:
        return read_file(path.parent, path.name)[0]
    except BadImage as error:
        raise BuildError(f"{path} {error}: mend it, or take it away.") from error

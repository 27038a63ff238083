"""Predicts in a process of its own: `python -m scaler.trace ANSWER < QUESTION`.

Prints how many shapes are done.
"""

import json
import os
import pickle
import sys
from functools import partial
from pathlib import Path

from scaler.errors import ScalerError
from scaler.schema import write_atomically
from scaler.trace.predict import predict


def main() -> None:
    """Read a pickled call of `predict` from the parent process, and write its answer as JSON."""
    answer = Path(sys.argv[1])
    with os.fdopen(os.dup(1), "w", buffering=1) as progress:
        os.dup2(2, 1)  # what the user's code prints is no progress
        try:
            workload, cluster, shapes, sizes, largest, offload = pickle.load(sys.stdin.buffer)
            tell = partial(print, file=progress)
            prediction = predict(workload, cluster, shapes, sizes, largest, offload, tell)
        except ScalerError as error:
            fault = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            write_atomically(answer, json.dumps({"fault": fault}))
        else:
            write_atomically(answer, prediction.model_dump_json())


main()

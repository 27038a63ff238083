"""Puts the files of a folder to storage while others go on."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scaler.errors import ScalerError
from scaler.storage import Storage

_PAUSES_S = (0.0, 1.0, 3.0)
"""Before each last try of what could not be put."""


class Uploads:
    """One thread that puts each file that was changed, as it is when its turn comes.

    Object storage cannot append, so a file is always put whole. That repairs a put that failed, and keeps the
    folder there the same as here; and what is appended while a put takes place shares the next one, so a long
    run does not put more than the network carries.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        self._folder = folder
        self._storage = storage
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scaler-uploads")
        self._waiting: set[str] = set()
        self._failed: dict[str, ScalerError] = {}

    @property
    def failure(self) -> ScalerError | None:
        """Why a file was not put, where one was not."""
        return next(iter(list(self._failed.values())), None)

    def changed(self, name: str) -> None:
        """Put a file of the folder when its turn comes."""
        if name not in self._waiting:
            self._waiting.add(name)
            self._thread.submit(self._put, name)

    def wait(self) -> ScalerError | None:
        """Wait until each file had its turn; gives the failure."""
        self._thread.submit(int).result()
        return self.failure

    def finish(self) -> ScalerError | None:
        """Wait, and try again what was not put; gives the failure that is left. No file may change later."""
        self.wait()
        self._thread.shutdown()
        for pause_s in _PAUSES_S:
            time.sleep(pause_s if self._failed else 0)
            for name in list(self._failed):
                self._put(name)
                if name in self._failed:  # nor would the others be put
                    break
        return self.failure

    def _put(self, name: str) -> None:
        self._waiting.discard(name)  # a change from here on is not in this put
        try:
            self._storage.put(self._folder / name, name)
        except ScalerError as error:
            self._failed[name] = error
        else:
            self._failed.pop(name, None)

"""Host memory of one rank's process, itemised."""

import psutil

from scaler.engine.data import load_data
from scaler.records import HostItem
from scaler.workload import Workload


class HostMemory:
    """What a rank needs of the host: measured here for the process and the data, derived for the rest.

    Make it before anything else loads the data.
    """

    def __init__(self, workload: Workload) -> None:
        self._process_bytes = psutil.Process().memory_info().rss
        load_data(workload, "train_data")
        self._data_bytes = max(0, psutil.Process().memory_info().rss - self._process_bytes)

    def items(
        self, batch_bytes: int, passes: int, model_bytes: int, cuda: bool, offload_bytes: int
    ) -> dict[HostItem, int]:
        """Itemise: a step's batches, one pinned copy on its way to a GPU, the model as it is built.

        `offload_bytes` of optimizer state live on the host where it is offloaded, pinned too.
        """
        return {
            "process": self._process_bytes,
            "data_set": self._data_bytes,
            "data_loading": passes * batch_bytes,
            "pinned_buffers": batch_bytes if cuda else 0,
            "model": model_bytes if cuda else 0,
            "optimizer_offload": offload_bytes,
        }

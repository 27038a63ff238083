import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Tracing collects garbage first: what was imported need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

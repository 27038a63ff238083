"""Which ZeRO stages are worth measuring beside the first."""

from dataclasses import dataclass

import pytest
from asking import curve
from devices import Devices, SimulatedRuntime

from scaler.cluster import Cluster
from scaler.errors import NothingFeasible
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.memory import measure_memory, roomier_stages
from scaler.measure.stages import ask_sizes, first_stage
from scaler.runs import RunFolder

BATCHES = [64, 512]


@dataclass(frozen=True)
class Sharding(Devices):
    """Devices that are predicted to hold less of the model at higher stages."""

    saved_bytes: tuple[int, ...] = (0, 0, 0, 0)
    """By stage."""

    def curve(self, workers, zero_stage, largest, accumulating):
        def held(size):
            return self.live_bytes(size, 1 + accumulating) - self.saved_bytes[zero_stage]

        return curve(held, sorted({1, largest}), workers, zero_stage, accumulating)


@pytest.fixture
def stages(tmp_path):
    """A function (memory, saved bytes by stage, workers) that gives the stages worth measuring."""

    def found(memory, saved=(0, 0, 0, 0), workers=2):
        cluster = Cluster(workers=(1, workers), kind="mock", device_memory_bytes=memory, margin=0.0)
        launch = LaunchConfig(workload="tiny", cluster=cluster, zero_stage="auto")
        devices = Sharding(cluster, fixed_bytes=10_000, saved_bytes=saved)
        evidence = Evidence(SimulatedRuntime(devices), RunFolder(tmp_path), None)
        sizes = ask_sizes(evidence)
        fits = measure_memory(evidence, launch, sizes, [1, workers], BATCHES)
        return [own.stage for own in roomier_stages(evidence, launch, sizes, BATCHES, fits)]

    return found


def test_none_where_the_largest_batch_fits_in_one_pass(stages):
    assert stages(10_000 + 100 * 256, (0, 5_000, 7_000, 9_000)) == []


def test_none_on_a_single_worker(stages):
    assert stages(10_000 + 100 * 128, (0, 5_000, 7_000, 9_000), workers=1) == []


@pytest.mark.parametrize(
    ("saved", "worth"),
    [
        ((0, 0, 0, 0), []),
        ((0, 5_000, 5_000, 5_000), [1]),
        ((0, 500, 5_000, 9_000), [2, 3]),
        ((0, 2_000, 4_000, 8_000), [1, 2, 3]),
    ],
)
def test_each_stage_that_lets_a_pass_hold_more_than_those_below(stages, saved, worth):
    assert stages(10_000 + 100 * 128, saved) == worth


def test_auto_begins_with_the_first_stage_that_fits(tmp_path):
    cluster = Cluster(workers=(1, 2), kind="mock", device_memory_bytes=9_000)
    launch = LaunchConfig(workload="tiny", cluster=cluster, zero_stage="auto")
    evidence = Evidence(SimulatedRuntime(Devices(cluster, fixed_bytes=10_000)), RunFolder(tmp_path), None)
    sizes = ask_sizes(evidence)
    with pytest.raises(NothingFeasible, match="runs out of memory at micro-batch 1"):
        first_stage(evidence, launch, sizes, [1, 2], BATCHES)
    asked = {record.plan.zero_stage for record in evidence.records if record.kind == "memory"}
    assert asked == {0, 1, 2, 3}

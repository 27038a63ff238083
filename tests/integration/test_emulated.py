"""Emulated clusters: slept computation, links that are shaped or held up, devices of different speed."""

import subprocess

import pytest
from questions import workload

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.speeds import with_measured_speeds
from scaler.fit.step_time import run_median_s, run_sync_s
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.runtime import shaped_nodes
from scaler.runtime.protocol import Task
from scaler.runtime.ray import RayRuntime

pytestmark = pytest.mark.integration

PASS_S, MESSAGE_S = 0.02, 0.01


def emulated(**more):
    return Cluster.model_validate(
        {"kind": "mock", "workers": [1, 2], "nodes": 2, "device_memory": "64MiB", **more}
    )


def timed(runtime, plan):
    request = ThroughputRequest(plan, time_limit_s=0.5)
    (outcome,) = runtime.run([Task(probe_throughput, request, plan.workers)])
    assert outcome.record is not None, outcome.failure
    return outcome.record


@pytest.mark.parametrize("shaping", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_steps_take_what_the_cluster_says(monkeypatch, shaping):
    if not shaping:
        monkeypatch.setattr(shaped_nodes.shutil, "which", lambda _: None)
    # 20 bytes of gradients, there and back, in packets of more; a message to each side takes two turns.
    cluster = emulated(emulate={"overhead": PASS_S, "latency": MESSAGE_S, "bandwidth": 2000})
    with RayRuntime(cluster, workload) as runtime:
        alone, together = (timed(runtime, BatchPlan.equal(4, 2, workers)) for workers in (1, 2))
    assert (alone.nodes, together.nodes) == (1, 2)
    assert run_median_s(alone) >= 2 * PASS_S  # of two passes
    assert run_median_s(together) >= 2 * PASS_S + 2 * MESSAGE_S
    assert run_sync_s(together) >= MESSAGE_S
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    assert "scaler" not in left


def test_unequal_devices_get_shares_that_end_together():
    fast, slow = ({"speed": 120.0 * rate} for rate in (4, 1))  # 24 operations an example
    devices = [
        {"device": name, "workers": 1, "device_memory": "64MiB", "emulate": emulate}
        for name, emulate in (("fast", fast), ("slow", slow))
    ]
    cluster = Cluster.model_validate({"kind": "mock", "workers": 2, "devices": devices})
    assert with_measured_speeds(cluster, []) == cluster
    with RayRuntime(cluster, workload) as runtime:
        equal = timed(runtime, BatchPlan.split(10, 2, 100))
        measured = with_measured_speeds(cluster, [equal])
        speeds = [group.speed for group in measured.devices]
        plan = BatchPlan.split(10, 2, [100, 100], speeds=speeds)
        balanced = timed(runtime, plan)
    assert speeds[0] == 1
    assert speeds[1] == pytest.approx(0.25, abs=0.1)
    assert plan.micro_batches == (8, 2)
    quick, late = balanced.rank_compute_s
    assert late / quick < 0.5 * equal.rank_compute_s[1] / equal.rank_compute_s[0]
    assert run_median_s(balanced) < run_median_s(equal)

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.cluster import Cluster, ConcealedBias
from scaler.errors import BadInput

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GIB = 2**30


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        path = tmp_path / "lab.yaml"
        path.write_text(text, encoding="utf-8")
        return Cluster.load(path)

    return write_and_load


def cluster(**fields):
    return Cluster.model_validate({"workers": 2, "kind": "cpu", **fields})


def test_a_whole_cluster_is_read(load):
    found = load(
        "name: big\nworkers: [2, 16]\nnodes: 2\nkind: cuda\ndevice_memory: 80GiB\nhost_memory: 1TiB\n"
        "interconnect: nvlink\nprice_per_device_hour: 2.5\nreserve: 512MiB\nmargin: 0.1\n"
    )
    assert (found.name, found.kind, found.nodes, found.interconnect) == ("big", "cuda", 2, "nvlink")
    assert (found.device_memory_bytes, found.host_memory_bytes) == (80 * GIB, 1024 * GIB)
    assert (found.reserve_bytes, found.margin, found.price_per_device_hour) == (GIB // 2, 0.1, 2.5)
    assert (found.min_workers, found.max_workers) == (2, 16)
    assert list(found.worker_counts) == list(range(2, 17))


def test_what_prediction_needs_of_a_device_is_read(load):
    found = load(
        "workers: 1\nkind: cuda\ndevice: NVIDIA L4\ncompute_capability: 8.9\ncontext: 400MiB\n"
        "communicator: 0\nexpandable_segments: true\nsource: its datasheet\n"
    )
    assert (found.device, found.compute_capability, found.source) == ("NVIDIA L4", 8.9, "its datasheet")
    assert (found.context_bytes, found.communicator_bytes) == (400 * 2**20, 0)
    assert found.expandable_segments is True


def test_the_speed_of_devices_and_links_is_read(load):
    found = load(
        "workers: 8\nkind: cuda\nflops: 989e12\nmemory_bandwidth: 3.35TB\n"
        "link_bandwidth: 50GB\nlocal_bandwidth: 900000000000\n"
    )
    assert (found.device_flops_per_s, found.device_bandwidth_bytes) == (989e12, 3_350_000_000_000)
    assert (found.link_bandwidth_bytes, found.local_bandwidth_bytes) == (50 * 10**9, 900 * 10**9)
    assert (found.flops_per_s, found.link_bytes_per_s) == (989e12, 50 * 10**9)


def test_what_is_emulated_stands_in_for_figures_that_are_not_stated(load):
    emulated = load(MOCK + "emulate: {speed: 1e9, bandwidth: 20MiB}\n")
    assert (emulated.flops_per_s, emulated.link_bytes_per_s) == (1e9, 20 * 2**20)
    assert (emulated.device_flops_per_s, emulated.link_bandwidth_bytes) == (None, None)
    stated = load(MOCK + "emulate: {speed: 1e9, bandwidth: 20MiB}\nflops: 2e9\nlink_bandwidth: 1MiB\n")
    assert (stated.flops_per_s, stated.link_bytes_per_s) == (2e9, 2**20)
    unequal = load("workers: 2\nkind: mock\n" + GROUPS + "emulate: {speed: 1e9, bandwidth: 20MiB}\n")
    assert (unequal.flops_per_s, unequal.link_bytes_per_s) == (None, 20 * 2**20)


def test_unequal_devices_are_read_in_the_order_of_ranks(load):
    found = load("workers: 3\nkind: cuda\n" + GROUPS.replace("L4, workers: 1", "L4, workers: 2"))
    assert [group.device for group in found.devices] == ["T4", "L4"]
    assert [found.capacity_bytes(rank) for rank in range(3)] == [GIB, 22 * GIB, 22 * GIB]
    assert found.capacity_bytes() == GIB  # which every one of them has
    assert found.device_memory_bytes is None


def test_concealed_bytes_are_read(load):
    found = load(MOCK + "concealed: {share: 0.04, step_at: 32MiB, step_share: 0.06}\n").concealed
    assert (found.share, found.step_at_bytes, found.step_share) == (0.04, 32 * 2**20, 0.06)
    assert load(MOCK + "concealed: {}\n").concealed == ConcealedBias()


def test_the_least_cluster_has_defaults_and_the_name_of_its_file(load):
    found = load("workers: 2\nkind: cpu\n")
    assert found.name == "lab"
    assert list(found.worker_counts) == [2]
    assert (found.nodes, found.reserve_bytes, found.margin) == (1, 0, 0.05)
    # What was not said is absent, never zero.
    assert found.price_per_device_hour is None
    assert found.interconnect is None
    assert found.device_memory_bytes is None
    assert (found.context_bytes, found.communicator_bytes, found.concealed) == (None, None, None)
    assert (found.device_flops_per_s, found.device_bandwidth_bytes, found.flops_per_s) == (None, None, None)
    assert (found.link_bandwidth_bytes, found.local_bandwidth_bytes, found.link_bytes_per_s) == (None,) * 3
    assert (found.devices, found.expandable_segments, found.compute_capability) == ((), False, 8.0)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("80GiB", 80 * GIB),
        ("64 MiB", 64 * 2**20),
        ("1.5GiB", 3 * GIB // 2),
        ("8GB", 8 * 10**9),
        ("4096", 4096),
    ],
)
def test_sizes_are_read_with_units(load, written, size_bytes):
    assert load(f"workers: 1\nkind: cuda\ndevice_memory: {written}\n").device_memory_bytes == size_bytes


def test_a_path_may_be_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("workers: 1\nkind: cpu\n", encoding="utf-8")
    assert Cluster.load(str(path)) == Cluster.load(path)


BASE = "workers: 2\nkind: cpu\n"
MOCK = "workers: 1\nkind: mock\ndevice_memory: 64MiB\n"
GROUPS = (
    "devices:\n  - {device: T4, workers: 1, device_memory: 1GiB}\n"
    "  - {device: L4, workers: 1, device_memory: 22GiB}\n"
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BASE + "device_memroy: 1GiB\n", "device_memroy: unknown key; did you mean 'device_memory'?"),
        ("kind: cpu\n", "workers: missing"),
        ("workers: 2\n", "kind: missing"),
        ("workers: 2\nkind: gpu\n", "kind: "),
        ("workers: 2\nkind:\n", "kind: "),
        ("workers: 0\nkind: cpu\n", "workers"),
        ("workers: -1\nkind: cpu\n", "workers"),
        ("workers: many\nkind: cpu\n", "workers"),
        ("workers: true\nkind: cpu\n", "workers"),
        ("workers: 1.5\nkind: cpu\n", "workers"),
        ("workers: [1]\nkind: cpu\n", "workers"),
        ("workers: [1, 2, 3]\nkind: cpu\n", "workers"),
        ("workers: [0, 2]\nkind: cpu\n", "workers"),
        ("workers: [4, 2]\nkind: cpu\n", "minimum 4 is above the maximum 2"),
        (BASE + "nodes: 0\n", "nodes"),
        (BASE + "nodes: -2\n", "nodes"),
        (BASE + "nodes: 3\n", "3 nodes for at most 2 workers"),
        (BASE + "device_memory: 0\n", "device_memory"),
        (BASE + "device_memory: -1GiB\n", "device_memory"),
        (BASE + "device_memory: 3 zorks\n", "zorks"),
        (BASE + "device_memory: .nan\n", "device_memory"),
        (BASE + "device_memory: .inf\n", "device_memory"),
        (BASE + "device_memory: [1]\n", "device_memory"),
        (BASE + "host_memory: 0\n", "host_memory"),
        (BASE + "host_memory: lots\n", "host_memory"),
        (BASE + "reserve: -1\n", "reserve"),
        (BASE + "device_memory: 1GiB\nreserve: 1GiB\n", "reserve: leaves no device memory"),
        (BASE + "margin: -0.1\n", "margin"),
        (BASE + "margin: 1.5\n", "margin"),
        (BASE + "margin: .nan\n", "margin"),
        (BASE + "price_per_device_hour: -1\n", "price_per_device_hour"),
        (BASE + "price_per_device_hour: .inf\n", "price_per_device_hour"),
        (BASE + "price_per_device_hour: cheap\n", "price_per_device_hour"),
        (BASE + "interconnect: 4\n", "interconnect"),
        (BASE + "name: 4\n", "name"),
        (BASE + "4: name\n", "4: "),
        ("workers: 2\nkind: mock\n", "device_memory: a mock device needs it"),
        (BASE + "compute_capability: 4.0\n", "compute_capability"),
        (BASE + "context: -1\n", "context"),
        (BASE + "communicator: -1MiB\n", "communicator"),
        (BASE + "flops: 0\n", "flops"),
        (BASE + "flops: -1e12\n", "flops"),
        (BASE + "flops: .inf\n", "flops"),
        (BASE + "flops: 1TB\n", "flops"),
        (BASE + "memory_bandwidth: 0\n", "memory_bandwidth"),
        (BASE + "memory_bandwidth: fast\n", "memory_bandwidth"),
        (BASE + "link_bandwidth: -1GB\n", "link_bandwidth"),
        (BASE + "local_bandwidth: .nan\n", "local_bandwidth"),
        (BASE + "expandable_segments: perhaps\n", "expandable_segments"),
        (BASE + "devices: {device: a}\n", "devices"),
        (BASE + "devices:\n  - {device: a, workers: 2}\n", "devices.0.device_memory: missing"),
        (BASE + "devices:\n  - {device: a, workers: 0, device_memory: 1GiB}\n", "devices.0.workers"),
        (BASE + "devices:\n  - {device: a, workers: 2, device_memory: 0}\n", "devices.0.device_memory"),
        (BASE + "devices:\n  - {device: a, workers: 2, memory: 1GiB}\n", "devices.0.memory: unknown key"),
        (BASE + "device_memory: 1GiB\n" + GROUPS, "devices: each has its own device_memory"),
        ("workers: 3\nkind: mock\n" + GROUPS, "do not add up to the cluster's 3"),
        ("workers: [1, 2]\nkind: mock\n" + GROUPS, "with unequal devices give one count"),
        (BASE + GROUPS + "reserve: 1GiB\n", "reserve: leaves no device memory"),
        (BASE + "concealed: {share: 0.05}\n", "concealed: only a mock device conceals bytes"),
        (MOCK + "concealed: {share: 0.2}\n", "concealed.share"),
        (MOCK + "concealed: {share: -0.1}\n", "concealed.share"),
        (MOCK + "concealed: {share: .nan}\n", "concealed.share"),
        (MOCK + "concealed: {shares: 0.1}\n", "concealed.shares: unknown key"),
        (MOCK + "concealed: {step_at: 0}\n", "concealed.step_at"),
        (MOCK + "concealed: {step_at: 1MiB, step_share: 0.11}\n", "concealed.step_share"),
        (MOCK + "concealed: {share: 0.06, step_at: 1MiB, step_share: 0.05}\n", "together are at most 0.1"),
        ("", "expected a mapping"),
        ("- workers: 2\n", "expected a mapping"),
        ("cluster\n", "expected a mapping"),
        ("workers: [2\n", "not valid YAML"),
        ("workers: 2\n\tkind: cpu\n", "not valid YAML"),
    ],
)
def test_a_bad_cluster_file_is_bad_input_with_a_hint(load, text, fault):
    with pytest.raises(BadInput) as caught:
        load(text)
    assert fault in caught.value.message
    assert "lab.yaml" in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_every_fault_is_listed_at_once(load):
    with pytest.raises(BadInput, match="6 faults") as caught:
        load("workers: [0, 2]\nkind: gpu\nnods: 1\nmargin: 2\ndevice_memory: -1\nreserve: x\n")
    for fault in ("workers", "kind", "nods", "did you mean 'nodes'", "margin", "device_memory", "reserve"):
        assert fault in caught.value.message


def test_every_contradiction_is_listed_at_once(load):
    with pytest.raises(BadInput) as caught:
        load("workers: [4, 2]\nkind: mock\nnodes: 8\n")
    for fault in ("minimum 4", "8 nodes", "mock device"):
        assert fault in caught.value.message


def test_an_absent_cluster_file_names_its_nearest(tmp_path):
    (tmp_path / "mock-2.yaml").touch()
    with pytest.raises(BadInput, match=r"no such file.*did you mean '.*mock-2\.yaml'") as caught:
        Cluster.load(tmp_path / "mock2.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_folder_is_no_cluster_file(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        Cluster.load(tmp_path)


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["cpu", "mock", "1GiB", "x", ""])
    | st.lists(st.integers(-1, 4), max_size=3)
)
_KEYS = [
    *("workers", "kind", "nodes", "device_memory", "host_memory", "reserve", "margin", "name", "other"),
    *("devices", "context", "communicator", "concealed", "expandable_segments", "compute_capability"),
    *("flops", "memory_bandwidth", "link_bandwidth", "local_bandwidth"),
]


@quiet
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES), st.booleans())
def test_any_mapping_is_a_consistent_cluster_or_bad_input(fields, complete):
    from scaler.schema import parse

    try:
        found = parse(Cluster, {"workers": 2, "kind": "cpu", **fields} if complete else fields, "c.yaml")
    except BadInput as error:
        assert error.hint
    else:
        assert 1 <= found.min_workers <= found.max_workers
        assert len(found.worker_counts) == found.max_workers - found.min_workers + 1
        assert parse(Cluster, found.model_dump(mode="json"), "c.yaml") == found


@pytest.mark.parametrize(
    ("peak", "fits"), [(0, True), (799, True), (800, True), (800.1, False), (801, False), (10**12, False)]
)
def test_a_plan_fits_with_its_margin_and_the_reserve(peak, fits):
    # 800 x 1.25 + 24 = 1,024
    assert cluster(margin=0.25, reserve=24).fits(peak, 1024) is fits


@quiet
@given(
    peak=st.integers(0, 2**45),
    eighths=st.integers(0, 8),
    reserve=st.integers(0, 2**40),
    slack=st.integers(-(2**20), 2**20),
)
def test_fits_is_the_formula_exactly(peak, eighths, reserve, slack):
    peak_bytes = 8 * peak
    capacity_bytes = peak * (8 + eighths) + reserve + slack
    assert cluster(margin=eighths / 8, reserve=reserve).fits(peak_bytes, capacity_bytes) is (slack >= 0)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mock"])
def test_the_stated_device_memory_is_the_capacity(kind):
    assert cluster(kind=kind, device_memory="64MiB").capacity_bytes() == 64 * 2**20


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mock"])
def test_equal_devices_have_the_same_capacity_on_every_rank(kind):
    found = cluster(kind=kind, device_memory="64MiB")
    assert {found.capacity_bytes(rank) for rank in (None, 0, 1)} == {64 * 2**20}


@quiet
@given(
    share=st.floats(0, 0.1),
    step=st.floats(0, 0.1),
    step_at=st.none() | st.integers(1, 2**40),
    live=st.lists(st.integers(0, 2**40), min_size=2, max_size=8),
)
def test_a_device_conceals_at_most_a_tenth_and_never_less_for_more(share, step, step_at, live):
    bias = ConcealedBias(share=share, step_at_bytes=step_at, step_share=min(step, 0.1 - share))
    counted = [bias.counted_bytes(size) for size in sorted(live)]
    assert counted == sorted(counted)
    for size, found in zip(sorted(live), counted, strict=True):
        assert size <= found <= size * 1.1 + 1
        if step_at is None or size < step_at:
            assert found == int(size * (1 + share))


def test_concealed_bytes_step_up_at_a_size():
    bias = ConcealedBias(share=0.02, step_at_bytes=1000, step_share=0.05)
    assert [bias.counted_bytes(size) for size in (0, 500, 999, 1000, 2000)] == [0, 510, 1018, 1070, 2140]


def test_only_a_cuda_device_knows_its_unstated_memory():
    assert cluster(kind="cuda", host_memory="64GiB").capacity_bytes() is None


@pytest.mark.parametrize(
    ("workers", "nodes", "share_gib"), [(1, 1, 64), (4, 1, 16), (4, 2, 32), (5, 2, 64 / 3), ([1, 8], 1, 8)]
)
def test_the_capacity_of_a_cpu_worker_is_its_share_of_the_hosts_memory(workers, nodes, share_gib):
    found = cluster(workers=workers, nodes=nodes, host_memory="64GiB").capacity_bytes()
    assert found == int(share_gib * GIB)


def test_without_a_statement_a_cpu_worker_shares_this_hosts_memory():
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert cluster(workers=1).capacity_bytes() == host_bytes
    assert cluster(workers=2).capacity_bytes() == host_bytes // 2


@pytest.mark.parametrize(
    ("nodes", "most", "workers", "expected"),
    [
        (1, 8, 1, 1),
        (1, 8, 8, 1),
        (2, 8, 4, 1),
        (2, 8, 5, 2),
        (4, 16, 4, 1),
        (4, 16, 9, 3),
        (4, 16, 16, 4),
        (2, 5, 3, 1),
        (2, 5, 4, 2),
        (8, 8, 3, 3),
    ],
)
def test_workers_are_placed_on_as_few_nodes_as_hold_them(nodes, most, workers, expected):
    assert cluster(workers=[1, most], nodes=nodes).nodes_of(workers) == expected


@quiet
@given(st.integers(1, 64), st.integers(1, 16))
def test_no_node_is_left_out_or_overfull(most, nodes):
    here = cluster(workers=[1, most], nodes=min(nodes, most))
    placed = [here.nodes_of(workers) for workers in here.worker_counts]
    assert placed[0] == 1 and placed == sorted(placed)
    assert max(placed) <= here.nodes
    largest = -(-most // here.nodes)
    assert all(workers <= count * largest for workers, count in zip(here.worker_counts, placed, strict=True))

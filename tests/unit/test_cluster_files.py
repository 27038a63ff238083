"""The cluster files that are shipped: they load, and say where their figures come from."""

import re
from pathlib import Path

import pytest

from scaler.cluster import Cluster, ConcealedBias, DeviceGroup, Emulation
from scaler.schema import Strict

FOLDER = Path(__file__).parents[2] / "cluster"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.name != "ray-launcher.yaml")  # that is Ray's
HARDWARE = sorted((FOLDER / "hardware").glob("*.yaml"))
GIB = 2**30


def test_there_are_files() -> None:
    assert len(HARDWARE) >= 10 and len(FILES) > len(HARDWARE)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_file_loads_under_its_own_name(file: Path) -> None:
    assert Cluster.load(file).name == file.stem


@pytest.mark.parametrize("file", HARDWARE, ids=lambda f: f.stem)
def test_a_hardware_file_has_the_figures_of_a_device_and_their_source(file: Path) -> None:
    cluster = Cluster.load(file)
    assert cluster.kind == "cuda" and cluster.nodes == 1 and cluster.device
    assert cluster.source is not None and "https://" in cluster.source
    assert "compute_capability" in cluster.model_fields_set and 7.0 <= cluster.compute_capability <= 12.0
    assert cluster.device_memory_bytes is not None and 8 * GIB < cluster.device_memory_bytes < 288 * GIB
    assert cluster.context_bytes is None or GIB // 8 < cluster.context_bytes < 2 * GIB


@pytest.mark.parametrize("file", HARDWARE, ids=lambda f: f.stem)
def test_a_hardware_file_says_how_fast_its_device_is_and_in_which_precision(file: Path) -> None:
    cluster = Cluster.load(file)
    assert cluster.device_flops_per_s is not None and 5e13 < cluster.device_flops_per_s < 3e15
    assert cluster.device_bandwidth_bytes is not None and 2e11 < cluster.device_bandwidth_bytes < 1e13
    assert re.search(r"\nflops: .* # .*(BF16|FP16).*, without sparsity\n", file.read_text(encoding="utf-8"))
    # Interconnects that name a figure agree with it.
    named = re.search(r"(\d+) GB/s", cluster.interconnect or "")
    assert cluster.local_bandwidth_bytes == (int(named[1]) * 10**9 if named else None)


@pytest.mark.parametrize("file", HARDWARE, ids=lambda f: f.stem)
def test_a_hardware_file_has_as_many_devices_as_its_name_says(file: Path) -> None:
    cluster = Cluster.load(file)
    assert file.stem.endswith(f"-{cluster.max_workers}x")
    assert cluster.min_workers == cluster.max_workers
    # One device needs no NCCL group.
    assert cluster.communicator_bytes is None or cluster.max_workers > 1


@pytest.mark.parametrize("file", HARDWARE, ids=lambda f: f.stem)
def test_a_hardware_file_says_where_the_memory_was_read(file: Path) -> None:
    before, _, _ = file.read_text(encoding="utf-8").partition("\ndevice_memory:")
    assert re.search(r"# .*(?:Total that|total_memory).* https://", before)


def test_files_of_the_same_device_agree() -> None:
    seen: dict[str | None, tuple[object, ...]] = {}
    for cluster in map(Cluster.load, HARDWARE):
        figures = (
            *(cluster.device_memory_bytes, cluster.compute_capability, cluster.source),
            *(cluster.flops_per_s, cluster.device_bandwidth_bytes, cluster.local_bandwidth_bytes),
        )
        assert seen.setdefault(cluster.device, figures) == figures


@pytest.mark.parametrize("file", HARDWARE, ids=lambda f: f.stem)
def test_the_readme_lists_a_hardware_file_with_its_memory(file: Path) -> None:
    (row,) = [line for line in README.splitlines() if f"(hardware/{file.name})" in line]
    assert f"| {Cluster.load(file).capacity_bytes() / GIB:.2f} GiB |" in row


@pytest.mark.parametrize("model", [Cluster, DeviceGroup, Emulation, ConcealedBias], ids=lambda m: m.__name__)
def test_the_readme_describes_every_key(model: type[Strict]) -> None:
    keys = [field.alias or name for name, field in model.model_fields.items()]
    assert [key for key in keys if f"\n| `{key}` |" not in README] == []

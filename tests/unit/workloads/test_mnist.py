import gzip
import pickle
import struct

import pytest
import torch

from scaler.errors import BadInput
from scaler.workload import load_workload
from scaler.workloads import mnist

IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801


def idx(magic, shape, data):
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(data)


def images(count, side=28):
    return idx(IMAGES_MAGIC, (count, side, side), [i % 256 for i in range(count * side * side)])


def labels(count):
    return idx(LABELS_MAGIC, (count,), [i % 10 for i in range(count)])


def put(folder, name, content):
    (folder / name).write_bytes(gzip.compress(content))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 12), ("test", 5)):
        put(folder, mnist._FILES[split][0], images(count))
        put(folder, mnist._FILES[split][1], labels(count))
    return folder


@pytest.fixture
def workload(folder):
    return mnist.from_folder(folder)


def test_reads_bytes_and_labels(workload):
    pixels, digits = workload.train_data().tensors
    assert pixels.shape == (12, 28, 28) and pixels.dtype == torch.uint8
    assert digits.dtype == torch.int64 and digits.tolist() == [i % 10 for i in range(12)]
    assert pixels.flatten()[:300].tolist() == [i % 256 for i in range(300)]
    assert len(workload.eval_data()) == 5


@pytest.mark.parametrize("nested", [False, True])
def test_built_in_reads_scaler_data_or_its_mnist_folder(folder, monkeypatch, nested):
    if nested:
        folder = folder.rename(folder.parent / "mnist").parent
    monkeypatch.setenv("SCALER_DATA", str(folder))
    assert len(load_workload("mnist").train_data()) == 12


@pytest.mark.parametrize("value", [None, ""])
def test_scaler_data_unset(monkeypatch, value):
    monkeypatch.delenv("SCALER_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SCALER_DATA", value)
    with pytest.raises(BadInput, match="SCALER_DATA is not set") as caught:
        load_workload("mnist").train_data()
    assert "train-images-idx3-ubyte.gz" in caught.value.hint


def test_absent_file_is_named(folder, workload):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(workload.train_data()) == 12
    with pytest.raises(BadInput, match=r"t10k-labels-idx1-ubyte.gz is neither in .*data nor in .*mnist"):
        workload.eval_data()


BAD_FILES = {
    "not gzip": ("images", images(12), "does not unpack"),
    "cut gzip": ("images", gzip.compress(images(12))[:-20], "does not unpack"),
    "damaged gzip": ("images", gzip.compress(images(12))[:20] + b"\xff" * 40, "does not unpack"),
    "no header": ("images", gzip.compress(b"\0\0\x08"), "3 bytes, less than its header of 16"),
    "labels for images": (
        "images",
        gzip.compress(labels(12)),
        "magic number 0x00000801, expected 0x00000803",
    ),
    "images for labels": (
        "labels",
        gzip.compress(images(12)),
        "magic number 0x00000803, expected 0x00000801",
    ),
    "floats": ("labels", gzip.compress(idx(0xD01, (12,), range(12))), "magic number 0x00000d01"),
    "data missing": ("images", gzip.compress(images(12)[:-1]), "9,407 bytes of data.* 12 x 28 x 28 = 9,408"),
    "data left over": ("labels", gzip.compress(labels(12) + b"\0"), "13 bytes of data.* 12 = 12"),
    "other size": ("images", gzip.compress(images(12, side=20)), "20 x 20 pixels, not 28 x 28"),
    "fewer images": ("images", gzip.compress(images(11)), "11 images.* 12 labels"),
    "other classes": (
        "labels",
        gzip.compress(idx(LABELS_MAGIC, (12,), range(12))),
        "label 11, expected 0 to 9",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_file(folder, workload, fault):
    which, content, message = BAD_FILES[fault]
    name = mnist._FILES["train"][which == "labels"]
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        workload.train_data()
    assert name in caught.value.message and caught.value.hint


def test_empty_set(folder, workload):
    for name, content in zip(mnist._FILES["train"], (images(0), labels(0)), strict=True):
        put(folder, name, content)
    with pytest.raises(BadInput, match="has 0 images"):
        workload.train_data()


def test_loss_is_a_finite_scalar_with_gradient(workload):
    net = workload.model()
    value = workload.loss(net, workload.train_data()[:8])
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_metric_is_a_share(workload):
    with torch.no_grad():
        assert 0 <= float(workload.metric(workload.model(), workload.eval_data()[:])) <= 1


def test_does_not_mix_examples_or_depend_on_mode(workload):
    net = workload.model()
    pixels, _ = workload.train_data()[:]
    assert torch.allclose(net(pixels)[:3], net.eval()(pixels[:3]), atol=1e-6)


def test_from_folder_pickles_without_an_address(workload):
    assert len(pickle.loads(pickle.dumps(workload)).train_data()) == 12

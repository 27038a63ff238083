import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from scaler.workload import load_workload
from scaler.workloads import resnet50


@pytest.fixture(scope="module")
def workload():
    return load_workload("resnet50")


@pytest.fixture(scope="module")
def net(workload):
    torch.manual_seed(0)
    return workload.model()


@pytest.fixture(scope="module")
def batch(workload):
    images, labels = default_collate([workload.train_data()[i] for i in range(2)])
    return images[:, :, :64, :64], labels


def texture(image):
    """The mean of an image's tiles."""
    return image.float().view(3, 28, 8, 28, 8).mean(dim=(1, 3)).flatten()


def test_sizes_are_those_of_resnet50(workload):
    with torch.device("meta"):
        net = workload.model()
        assert sum(p.numel() for p in net.parameters()) == 25_557_032
        assert net.layers(torch.zeros(2, 3, 224, 224)).shape == (2, 2_048, 7, 7)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 53


def test_the_stride_is_in_the_3_x_3_convolutions(net):
    strided = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert sorted(strided) == [(1, 1)] * 3 + [(3, 3)] * 3 + [(7, 7)]  # shortcuts, blocks and stem
    for block in (m for m in net.modules() if isinstance(m, resnet50.Bottleneck)):
        assert block.layers[0][0].stride == block.layers[4][0].stride == (1, 1)


def test_images_have_the_stated_sizes_and_form(workload):
    for data, examples in ((workload.train_data(), 50_000), (workload.eval_data(), 1_000)):
        assert len(data) == examples
        image, label = data[examples - 1]
        assert image.shape == (3, 224, 224) and image.dtype == torch.uint8 and label == 999
        with pytest.raises(IndexError):
            data[examples]


def test_pixels_have_the_mean_and_deviation_that_the_net_subtracts(workload):
    pixels = torch.stack([workload.train_data()[i][0] for i in range(10)]).float()
    assert pixels.mean().item() == pytest.approx(resnet50._MEAN, abs=1.5)
    assert pixels.std().item() == pytest.approx(resnet50._DEVIATION, abs=1.5)


def test_an_image_is_the_same_each_time_whatever_the_seed(workload):
    before = workload.train_data()[7][0]
    torch.manual_seed(123)
    resnet50._tiles.cache_clear()
    state = torch.get_rng_state()
    assert torch.equal(before, workload.train_data()[7][0])
    assert torch.equal(state, torch.get_rng_state())


def test_images_of_a_class_share_its_texture_and_differ_in_noise(workload):
    train, held_out = workload.train_data(), workload.eval_data()
    images = [train[7][0], train[1_007][0], held_out[7][0], train[8][0]]
    assert len({image.numpy().tobytes() for image in images}) == 4
    alike = torch.corrcoef(torch.stack([texture(image) for image in images]))
    assert alike[0, 1] > 0.99 and alike[0, 2] > 0.99 and alike[0, 3].abs() < 0.3


def test_a_small_image_gives_logits_and_a_loss_with_gradient(workload, net, batch):
    logits = net(batch[0])
    assert logits.shape == (2, 1_000)
    value = workload.loss(net, batch)
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_trains_in_bfloat16(workload, net, batch):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert workload.precision == "bf16"
        assert net(batch[0]).dtype == torch.bfloat16


def test_accuracy_counts_correct_answers(workload):
    logits, labels = torch.eye(1_000)[:4], torch.arange(4)
    assert float(workload.metric(nn.Identity(), (logits, labels))) == 1
    assert float(workload.metric(nn.Identity(), (logits, labels + 1))) == 0


def test_weight_is_left_to_the_number_of_examples_and_all_images_are_as_large(workload):
    assert workload.weight is None and workload.worst_case is None


def test_optimizer_has_the_stated_settings(workload, net):
    (group,) = workload.optimizer(net.parameters(), 0.01).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 5e-5)


def test_data_ends_and_pickles(workload):
    data = pickle.loads(pickle.dumps(resnet50.Textures(3, split=1)))
    assert sum(1 for _ in itertools.islice(data, 10)) == 3
    assert pickle.loads(pickle.dumps(workload)) == workload

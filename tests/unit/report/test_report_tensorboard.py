"""Event files, read back by TensorBoard itself."""

import shutil
import sys
from pathlib import Path

import pytest

from scaler.cli import main
from scaler.decide.config import BatchConfig
from scaler.records import ConvergenceRecord, ThroughputRecord
from scaler.runs import RunFolder

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("ignore")

RECORDED = Path(__file__).parents[2] / "recorded" / "digits-mock-2"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run and its event files, by the command."""
    folder = tmp_path_factory.mktemp("events")
    shutil.copytree(RECORDED, folder / "RUN")
    assert main(["report", str(folder / "RUN"), "--tensorboard", str(folder / "new" / "EVENTS")]) == 0
    return RunFolder.open(folder / "RUN"), folder / "new" / "EVENTS"


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def hparams(events):
    from tensorboard.plugins.hparams import metadata

    contents = events.summary_metadata
    data = contents[metadata.SESSION_START_INFO_TAG].plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(data).hparams
    return {name: value.number_value or value.string_value for name, value in found.items()}


def test_every_trial_has_its_curve_and_hparams(written):
    run, folder = written
    trials = [(n, r) for n, r in enumerate(run.records()) if isinstance(r, ConvergenceRecord)]
    assert len(trials) > 5
    for number, record in trials:
        (own,) = folder.glob(f"{record.kind}-{number:03d}-*")
        events = read(own)
        points = [(point.step, point.value) for point in events.Scalars("metric")]
        assert [p for p, _ in points] == [e.examples for e in record.curve]
        assert [v for _, v in points] == pytest.approx([e.metric for e in record.curve], rel=1e-6)
        assert hparams(events)["learning_rate"] == record.learning_rate
        assert hparams(events)["global_batch"] == record.plan.global_batch


def test_every_launch_has_its_step_times(written):
    run, folder = written
    launches = [(n, r) for n, r in enumerate(run.records()) if isinstance(r, ThroughputRecord)]
    number, record = launches[0]
    (own,) = folder.glob(f"launch-{number:03d}-*")
    times = [point.value for point in read(own).Scalars("step_time_s")]
    assert times == pytest.approx(list(record.step_times_s), rel=1e-6)
    assert len(list(folder.glob("launch-*"))) == len(launches)


def test_the_answer_has_the_plan_and_predicted_beside_observed(written):
    run, folder = written
    config = BatchConfig.load(run.path)
    events = read(folder / "answer")
    assert hparams(events)["global_batch"] == config.chosen.plan.global_batch
    assert config.confirmation is not None
    for comparison in config.confirmation.comparisons:
        for name, value in (("predicted", comparison.predicted.value), ("observed", comparison.observed)):
            (point,) = events.Scalars(f"{comparison.quantity}/{name}")
            assert point.value == pytest.approx(value, rel=1e-6)


def test_a_folder_in_use_is_left_alone(written, capsys):
    run, folder = written
    before = sorted(folder.rglob("*"))
    assert main(["report", str(run.path), "--tensorboard", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before and sorted(folder.parent.iterdir()) == [folder]


def test_without_tensorboard_the_extra_is_named(written, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["report", str(written[0].path), "--tensorboard", str(tmp_path / "EVENTS")]) == 2
    assert "scaler[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "EVENTS").exists()

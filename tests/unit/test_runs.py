import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.errors import BadInput
from scaler.records import ConfirmationRecord, ConvergenceRecord, Environment, MemoryRecord
from scaler.runs import RunFolder

OWN = ["launch.yaml", "records.jsonl", "batch-config.yaml", "report.html", "fault.log", "regimes.html"]
PLAN = BatchPlan(micro_batches=(719, 718))


def seen(task="t1", device="cpu"):
    return {
        "task": task,
        "seed": 0,
        "taken_at": datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
        "environment": Environment(
            device=device, world_size=2, machine="Linux x86_64", cpu_count=4, versions={}
        ),
    }


def memory(task="t1", device="cpu"):
    return MemoryRecord(**seen(task, device), plan=PLAN, out_of_memory=False, peak_bytes=2**20)


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "RUN")


def test_a_new_run_is_an_empty_folder(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "RUN")
    assert run.path == tmp_path / "deep" / "RUN"
    assert list(run.path.iterdir()) == []
    assert run.records() == []


def test_a_run_names_its_files(run):
    files = [run.launch, run.records_file, run.batch_config, run.report, run.fault_log, run.regimes_report]
    assert [file.relative_to(run.path).as_posix() for file in files] == OWN


def test_a_relative_path_stays_true_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create("RUN")
    monkeypatch.chdir("/")
    run.append(memory())
    assert (tmp_path / "RUN" / "records.jsonl").is_file()


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "RUN").mkdir()
    assert RunFolder.create(tmp_path / "RUN").path.is_dir()


@pytest.mark.parametrize("name", [*OWN, "notes.txt"])
def test_a_folder_that_is_not_empty_is_refused(tmp_path, name):
    (tmp_path / name).write_text("kept", encoding="utf-8")
    with pytest.raises(BadInput, match="not empty") as caught:
        RunFolder.create(tmp_path)
    assert "--resume" in caught.value.hint
    assert "--force" in caught.value.hint
    assert (tmp_path / name).read_text(encoding="utf-8") == "kept"


def test_force_clears_an_earlier_run(tmp_path):
    for name in [*OWN, "batch-config-h100-8x.yaml"]:
        (tmp_path / name).write_text("old", encoding="utf-8")
    RunFolder.create(tmp_path, force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["notes.txt", "model.pt", ".git", "launch.yml"])
def test_force_never_touches_a_folder_with_other_files(tmp_path, foreign):
    for name in [*OWN, foreign]:
        (tmp_path / name).write_text("kept", encoding="utf-8")
    with pytest.raises(BadInput, match="not of a run") as caught:
        RunFolder.create(tmp_path, force=True)
    assert foreign in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*OWN, foreign])
    assert all(p.read_text(encoding="utf-8") == "kept" for p in tmp_path.iterdir())


def test_force_never_touches_a_folder_with_a_folder_in_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BadInput, match="checkpoints"):
        RunFolder.create(tmp_path, force=True)
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_no_folder(tmp_path, force):
    (tmp_path / "RUN").write_text("kept", encoding="utf-8")
    for path in (tmp_path / "RUN", tmp_path / "RUN" / "deeper"):
        with pytest.raises(BadInput, match="cannot make the out folder"):
            RunFolder.create(path, force=force)
    assert (tmp_path / "RUN").read_text(encoding="utf-8") == "kept"


def test_an_existing_run_is_opened(run):
    run.launch.write_text("workload: digits\n", encoding="utf-8")
    run.append(memory())
    for path in (run.path, str(run.path)):
        assert RunFolder.open(path).records() == [memory()]


@pytest.mark.parametrize("make", [False, True])
def test_what_is_not_a_run_is_not_opened(tmp_path, make):
    if make:
        (tmp_path / "RUN").mkdir()
    with pytest.raises(BadInput, match="not a run folder") as caught:
        RunFolder.open(tmp_path / "RUN")
    assert "scaler tune" in caught.value.hint


def test_records_come_back_in_order_and_of_their_kind(run):
    trained = {
        "plan": PLAN,
        "learning_rate": 0.1,
        "warmup_examples": 0,
        "dataset_examples": 1437,
        "stop": "limit",
        "examples": 0,
        "steps": 0,
        "curve": (),
    }
    records = [
        memory("a"),
        ConvergenceRecord(**seen("b"), **trained),
        ConfirmationRecord(**seen("c"), **trained, step_times_s=(0.5,)),
        memory("a"),
    ]
    for record in records:
        run.append(record)
    found = run.records()
    assert found == records
    assert [type(record) for record in found] == [type(record) for record in records]
    assert len(run.records_file.read_text(encoding="utf-8").splitlines()) == 4


def test_appending_leaves_earlier_records_as_they_were(run):
    run.append(memory("a"))
    before = run.records_file.read_bytes()
    RunFolder(run.path).append(memory("b"))
    assert run.records_file.read_bytes().startswith(before)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_record_of_any_text_comes_back(run, text):
    run.records_file.unlink(missing_ok=True)
    record = memory(text, device=text)
    run.append(record)
    run.append(memory())
    assert run.records() == [record, memory()]


@pytest.mark.parametrize("device", ["cpu", "Gerät"])
def test_a_last_line_cut_anywhere_is_left_out_and_repaired(run, device):
    run.append(memory("a", device))
    whole = run.records_file.read_bytes()
    run.append(memory("b", device))
    data = run.records_file.read_bytes()
    for end in range(len(whole), len(data)):
        run.records_file.write_bytes(data[:end])
        assert run.records() == [memory("a", device)]
        run.drop_cut_line()
        assert run.records_file.read_bytes() == whole
    run.append(memory("c"))
    assert run.records() == [memory("a", device), memory("c")]


def test_a_lone_cut_line_leaves_no_record(run):
    run.records_file.write_text('{"kind": "mem', encoding="utf-8")
    assert run.records() == []
    run.drop_cut_line()
    assert run.records_file.read_bytes() == b""


def test_a_whole_file_needs_no_repair(run):
    run.drop_cut_line()
    assert not run.records_file.exists()
    run.append(memory())
    run.drop_cut_line()
    assert run.records() == [memory()]


@pytest.mark.parametrize(
    "line", ["{}", "", "not json", '{"kind": "magic"}', "[1]", '{"kind": "memory", "seed": NaN}']
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_corrupt_line_is_named_with_its_number(run, line, number):
    for task in "ab":
        run.append(memory(task))
    lines = run.records_file.read_text(encoding="utf-8").splitlines()
    lines.insert(number - 1, line)
    run.records_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match=rf"records\.jsonl:{number} is not a record") as caught:
        run.records()
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_line_of_other_bytes_is_named_with_its_number(run):
    run.append(memory())
    with run.records_file.open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(BadInput, match=r"records\.jsonl:2 is not a record"):
        run.records()

"""The command line: what goes wrong ends in one message with a hint and a documented exit code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import plan_cases
import pytest
import yaml

from scaler.cli import main
from scaler.records import Prediction

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded" / "digits-mock-2"
MOCK = str(ROOT / "cluster" / "mock-2.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BAD = [
    (["tune"], "the following arguments are required: WORKLOAD"),
    (["tune", "digits"], "--cluster"),
    (["tun"], "invalid choice: 'tun'"),
    (["tune", "digit", "--cluster", MOCK], "did you mean 'digits'?"),
    (["tune", "absent.py:w", "--cluster", MOCK], "no such workload file: "),
    (["tune", "no.such.module:w", "--cluster", MOCK], "No module named"),
    (["tune", "digits", "--cluster", "absent.yaml"], "no such file: absent.yaml"),
    (["tune", "digits", "--cluster", MOCK, "--budget", "soon"], "'soon' is not a duration"),
    (["tune", "digits", "--cluster", MOCK, "--zero", "4"], "zero_stage"),
    (["tune", "digits", "--cluster", MOCK, "--seeds", "0"], "seeds"),
    (["tune", "digits", "--cluster", MOCK, "--seeds", "many"], "invalid int value"),
    (["tune", "digits", "--cluster", MOCK, "--resume", "--force"], "not allowed with argument"),
    (["tune", "digits", "--cluster", MOCK, "--resume"], "is not a run folder"),
    (["plan"], "the following arguments are required: WORKLOAD"),
    (["plan", "digits"], "--cluster"),
    (["plan", "digit", "--cluster", MOCK], "did you mean 'digits'?"),
    (["plan", "digits", "--cluster", "absent.yaml"], "no such file: absent.yaml"),
    (["plan", "digits", "--cluster", MOCK, "--micro-batch", "0"], "--micro-batch 0"),
    (["plan", "digits", "--cluster", MOCK, "--micro-batch", "8", "-1"], "--micro-batch -1"),
    (["plan", "digits", "--cluster", MOCK, "--micro-batch", "some"], "invalid int value: 'some'"),
    (["plan", "digits", "--cluster", MOCK, "--margin", "much"], "margin: "),
    (["plan", "digits", "--cluster", MOCK, "--margin", "1.5"], "margin: Input should be less than"),
    (["plan", "digits", "--cluster", MOCK, "--margin", "-0.1"], "margin: Input should be greater than"),
    (["plan", "digits", "--cluster", MOCK, "--device-memory", "lots"], "device_memory: "),
    (["plan", "digits", "--cluster", MOCK, "--device-memory", "0"], "device_memory: "),
    (["plan", "digits", "--cluster", MOCK, "--reserve", "2MiB"], "reserve: leaves no device memory"),
    (["tune", "digits", "--cluster", MOCK, "--margin", "2"], "margin: Input should be less than"),
    (["recommend", "absent"], "absent is not a run folder"),
    (["report", "absent"], "absent is not a run folder"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_exits_2_with_one_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ") and "\nhint: " in err and "Traceback" not in err


def test_every_fault_of_a_cluster_file_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("worker: 2\nkind: gpu\ndevice_memory: -1\n", encoding="utf-8")
    assert main(["tune", "digits", "--cluster", "c.yaml"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'workers'?" in err and "workers: missing" in err
    assert "kind: " in err and "device_memory" in err


def test_an_out_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "thesis.tex").write_text("years", encoding="utf-8")
    for option in ([], ["--force"]):
        assert main(["tune", "digits", "--cluster", MOCK, "--out", "RUN", *option]) == 2
    assert (tmp_path / "RUN" / "thesis.tex").read_text(encoding="utf-8") == "years"
    assert "thesis.tex" in capsys.readouterr().err


def test_recommend_prints_json_to_stdout_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["recommend", "RUN", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["workload"] == "digits" and len(answer["answers"]) == 2
    assert "next: scaler explain RUN" in err


def test_recommend_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["recommend", "RUN"]) == 0
    out = capsys.readouterr().out
    assert "micro-batch" in out and "\x1b" not in out


def test_recommend_decides_for_each_cluster_and_writes_a_file_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    for name, price in (("dear", 4.0), ("half price", 2.0)):
        text = f"name: {name}\nworkers: [1, 2]\nkind: mock\ndevice_memory: 2MiB\n"
        text += f"price_per_device_hour: {price}\n"
        (tmp_path / f"{price}.yaml").write_text(text, encoding="utf-8")
    assert main(["recommend", "RUN", "--json", "--cluster", "4.0.yaml", "--cluster", "2.0.yaml"]) == 0
    dear, half = json.loads(capsys.readouterr().out)
    costs = [found["answers"][0]["cost_to_target"] for found in (dear, half)]
    assert costs[0] == pytest.approx(2 * costs[1])
    for found, name in ((dear, "dear"), (half, "half-price")):
        assert yaml.safe_load((tmp_path / "RUN" / f"batch-config-{name}.yaml").read_text()) == found
    assert main(["recommend", "RUN", "--cluster", "4.0.yaml", "--cluster", "4.0.yaml"]) == 2
    assert "two clusters are named dear" in capsys.readouterr().err


def test_explain_says_why_and_what_would_change_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["explain", "RUN"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Chosen for the least time to target among",
        "why:",
        "from:",
        "What would change the answer",
    ):
        assert words in out
    assert main(["explain", "RUN", "--objective", "cost", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["choice"]["objective"] == "the least cost to target"
    assert {"reasons", "sources", "changes", "pareto", "not_known"} <= told.keys()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--objective", "speed"], 2, "choose one of cost, examples, throughput, time"),
        (["--max-time", "1ms"], 3, "no plan keeps the limit on time"),
        (["--max-time", "soon", "--max-cost", "-1"], 2, "2 faults"),
    ],
)
def test_what_cannot_be_chosen_by_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str
) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["recommend", "RUN", *options]) == code
    out, err = capsys.readouterr()
    assert not out and words in err and "hint:" in err


def test_report_prints_the_path_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["report", "RUN"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_an_unexpected_fault_exits_1_and_keeps_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    monkeypatch.setattr("scaler.answers.decide_again", lambda *_: 1 / 0)
    assert main(["recommend", "RUN"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "Traceback" not in err
    log = Path(err.split("the trace is in ")[1].split(";")[0])
    assert "1 / 0" in log.read_text(encoding="utf-8")
    log.unlink()


def test_version_and_help_need_neither_torch_nor_ray() -> None:
    code = "import sys, scaler.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "c.main(['--version']); print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "exit codes:" in done.stdout


# What fits


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler.plan.ask_prediction", plan_cases.predict)


ONE = "workers: [1, 2]\nkind: cuda\ndevice_memory: 24MiB\n"


@pytest.fixture
def one(tmp_path: Path) -> str:
    (tmp_path / "one.yaml").write_text(ONE, encoding="utf-8")
    return "one.yaml"


def test_plan_prints_what_fits_and_how_to_measure_it(
    predicted: None, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "digits", "--cluster", one]) == 0
    out, err = capsys.readouterr()
    assert "digits on one: memory of one cuda device with 24.0 MiB" in out and "\x1b" not in out
    assert "next: scaler tune digits --cluster one.yaml measures it" in err
    assert "memory: done, 8 of 8 tasks" in err


def test_plan_prints_json_to_stdout_only(
    predicted: None, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "digits", "--cluster", one, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["plans"]) == 8 and found["at"] == []
    assert main(["plan", "digits", "--cluster", one, "--json", "--micro-batch", "8", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["micro_batch"] for entry in found["at"]} == {8, 64} and found["plans"] == []


def test_a_traced_plan_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", "--cluster", MOCK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(plan["workers"], plan["zero_stage"]) for plan in found["plans"]} == {
        (workers, stage) for workers in (1, 2) for stage in range(4)
    }


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_plan_in_which_nothing_fits_is_printed_and_exits_3(
    predicted: None, one: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "digits", "--cluster", one, "--device-memory", "3MiB", *form]) == 3
    out, err = capsys.readouterr()
    if form:
        assert {plan["max_micro_batch"] for plan in json.loads(out)["plans"]} == {0}
    else:
        assert "none: 1 is too large" in out
    assert "error: digits does not fit 3.0 MiB of device memory at micro-batch 1" in err
    assert "hint: what would make it fit: " in err and "next:" not in err


def test_a_size_that_was_asked_for_is_answered_although_it_does_not_fit(
    predicted: None, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "digits", "--cluster", one, "--json", "--micro-batch", "100000"]) == 0
    assert {entry["fits"] for entry in json.loads(capsys.readouterr().out)["at"]} == {False}


def test_a_workload_that_cannot_be_traced_exits_2(
    one: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untraced = Prediction(curves=(), confidence="low", notes=("1 (Leaves): no values",))
    monkeypatch.setattr("scaler.plan.ask_prediction", lambda *_, **__: untraced)
    assert main(["plan", "digits", "--cluster", one]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "workload 'digits' cannot be traced: 1 (Leaves): no values" in err and "\nhint: " in err


def test_a_cluster_without_device_memory_takes_it_from_the_command_line(
    predicted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.yaml").write_text("workers: 1\nkind: cuda\n", encoding="utf-8")
    assert main(["plan", "digits", "--cluster", "bare.yaml"]) == 2
    assert "--device-memory 80GiB" in capsys.readouterr().err
    assert main(["plan", "digits", "--cluster", "bare.yaml", "--device-memory", "24MiB"]) == 0


LIMITS = [
    ("--device-memory", "48MiB", "device_memory", 48 * 2**20),
    ("--reserve", "1.5MiB", "reserve", 3 * 2**19),
    ("--margin", "0.25", "margin", 0.25),
]


@pytest.mark.parametrize(("option", "given", "key", "value"), LIMITS)
def test_a_limit_replaces_the_clusters_in_a_plan(
    predicted: None,
    one: str,
    capsys: pytest.CaptureFixture[str],
    option: str,
    given: str,
    key: str,
    value: float,
) -> None:
    largest = {}
    for limits in ((), (option, given)):
        assert main(["plan", "digits", "--cluster", one, "--json", *limits]) == 0
        found = json.loads(capsys.readouterr().out)
        largest[limits] = [plan["max_micro_batch"] for plan in found["plans"]]
    assert found["cluster"][key] == value
    assert found["cluster"]["name"] == "one" and found["cluster"]["workers"] == [1, 2]
    more = option == "--device-memory"
    pairs = zip(largest[()], largest[option, given], strict=True)
    assert all(after > before if more else after < before for before, after in pairs)


@pytest.mark.parametrize(("option", "given", "key", "value"), LIMITS)
def test_a_limit_replaces_the_runs_in_a_recommendation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, given: str, key: str, value: float
) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    before = (tmp_path / "RUN" / "launch.yaml").read_bytes()
    assert main(["recommend", "RUN", "--json", option, given]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"][key] == value
    assert (tmp_path / "RUN" / "launch.yaml").read_bytes() == before  # the run stays what it was


def test_a_limit_replaces_the_clusters_in_a_launch(monkeypatch: pytest.MonkeyPatch, one: str) -> None:
    launched = []
    monkeypatch.setattr("scaler.commands.run_launch", lambda launch, **_: launched.append(launch))
    limits = ["--device-memory", "48MiB", "--reserve", "1MiB", "--margin", "0.25"]
    assert main(["tune", "digits", "--cluster", one, *limits]) == 0
    cluster = launched[0].cluster
    assert (cluster.device_memory_bytes, cluster.reserve_bytes, cluster.margin) == (48 * 2**20, 2**20, 0.25)


def test_unequal_devices_have_no_one_memory_to_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = "  - {device: NVIDIA L4, workers: 1, device_memory: 22GiB}\n"
    (tmp_path / "c.yaml").write_text(f"workers: 2\nkind: cuda\ndevices:\n{device * 2}", encoding="utf-8")
    assert main(["plan", "digits", "--cluster", "c.yaml", "--device-memory", "3MiB"]) == 2
    assert "devices: each has its own device_memory" in capsys.readouterr().err

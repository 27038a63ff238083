"""Every piece of code in docs/integrations.md runs as it is written there."""

import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from scaler.answers import report
from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.workload import load_workload
from scaler.workloads import digits

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
FILES = [code for code in CODE if code.startswith("# ")]
SNIPPETS = [code for code in CODE if not code.startswith("# ")]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "tests" / "recorded" / "digits-mock-2", folder / "RUN")
    report(folder / "RUN")
    return folder, BatchConfig.load(folder / "RUN")


@pytest.fixture
def names(config, monkeypatch):
    """What the snippets leave to the user."""
    folder, found = config
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    return {
        "torch": torch,
        "dataset": digits.train_data(),
        "net": digits.model(),
        "answer": found.chosen,
    }


def lightning_names(names):
    lightning = pytest.importorskip("lightning.pytorch")

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = names["net"]

        def training_step(self, batch):
            return digits.loss(self.net, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=names["answer"].learning_rate)

    loader = DataLoader(names["dataset"], batch_size=names["answer"].plan.micro_batch, drop_last=True)
    return {**names, "module": Net(), "train_loader": loader}


def hugging_face_names(names):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = names["net"]

        def forward(self, x, y):
            return {"loss": digits.loss(self.net, (x, y))}

    answer = names["answer"]
    args = transformers.TrainingArguments(
        "output",
        per_device_train_batch_size=answer.plan.micro_batch,
        gradient_accumulation_steps=answer.plan.accumulation,
        learning_rate=answer.learning_rate,
        max_steps=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    rows = [{"x": x, "y": y} for x, y in names["dataset"]]
    return {**names, "hugging_face_trainer": transformers.Trainer(Net(), args, train_dataset=rows)}


def test_the_plain_loop_trains(names):
    batch = names["dataset"][:]
    before = float(digits.loss(names["net"], batch))
    (code,) = [code for code in SNIPPETS if "scaler.apply" in code]
    exec(code, names)
    assert float(digits.loss(names["net"], batch)) < 0.5 * before


@pytest.mark.parametrize(
    ("library", "add"), [("lightning", lightning_names), ("hugging_face", hugging_face_names)]
)
def test_the_callbacks_run(names, library, add):
    (code,) = [code for code in SNIPPETS if f"scaler.callbacks.{library} " in code]
    with warnings.catch_warnings(action="ignore"):
        exec(code, add(names))


@pytest.mark.parametrize("code", FILES, ids=lambda code: code.split()[1])
def test_the_files_are_workloads(code, tmp_path, monkeypatch, rank):
    pytest.importorskip("lightning" if "lightning" in code else "transformers")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / code.split()[1]
    file.write_text(code, encoding="utf-8")
    workload = load_workload(f"{file}:workload")
    plan = BatchPlan.equal(workload.reference.global_batch, 1, 1)
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, seed=0)
    steps = rank_steps(workload, load_train_data(workload, plan.global_batch), plan, 0, seed=0)
    losses = [float(engine.step(next(steps), 1.0)) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_nothing_on_the_page_is_left_out():
    assert (len(SNIPPETS), len(FILES)) == (3, 2)

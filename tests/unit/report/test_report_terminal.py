import io

import pytest
from report_study import estimate
from terminal_text import Terminal, squeezed

from scaler.batch import BatchPlan
from scaler.decide.config import Comparison
from scaler.report.terminal import make_console, print_answer
from scaler.report.wording import comparison_words, cost_words, counted, interval, micro_batch_words
from scaler.units import format_count

pytestmark = pytest.mark.usefixtures("plain_environment")


def printed(config, stream=None) -> str:
    stream = stream or io.StringIO()
    print_answer(config, make_console(stream))
    return stream.getvalue()


def test_the_table_holds_the_plans_numbers(config):
    text = printed(config)
    for part in (
        "4 chosen 512 128 x 1 0.2 3 ms 170,667 159 ms not",
        "5 workers: a global batch of 512 does not split over 5 workers",
        "step time 3 ms 2.7 ms to 3.3 ms fitted to 24 launches",
        "workers 4 a setting the least time to target of 4",
        "the largest batch that fits 4,096 2.7 x no takes 2.7 times as long",
        "trained once and reached the target: 27,000 examples, 53 steps",
        "step time 3 ms 2.7 ms to 3.3 ms 3.12 ms inside",
        "- The critical batch is not identifiable: the curve has not bent.",
    ):
        assert part in squeezed(text), part
    assert text.endswith("\n")


def test_without_a_terminal_lines_are_plain_and_100_wide(config):
    text = printed(config)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_a_terminal_gets_emphasis_and_no_color_takes_it_away(config, monkeypatch):
    assert "\x1b[1m" in printed(config, Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(config, Terminal())


def test_names_are_neither_markup_nor_escapes(config):
    text = printed(config.model_copy(update={"workload": "[red]x[/red]\x1b[31m"}))
    assert "Train [red]x[/red]?[31m on" in text


def test_what_is_absent_is_said(config):
    chosen = config.answers[3].model_copy(update={"time_to_target_s": None, "examples_to_target": None})
    bare = config.model_copy(
        update={"answers": (chosen,), "infeasible": {}, "confirmation": None, "rules_of_thumb": ()}
    )
    text = squeezed(printed(bare))
    assert "the time to the target was not measured." in text
    assert "time to target not measured" in text
    assert "the least time to target of 1 worker count" in text
    assert "was not trained to confirm" in text


def test_accumulation_is_in_the_sentence(config):
    plan = BatchPlan.equal(32, 4, 4)
    chosen = config.answers[3].model_copy(update={"plan": plan})
    text = squeezed(printed(config.model_copy(update={"answers": (chosen,)})))
    assert "(micro-batch 32, 4 passes each)" in text


def test_words_for_numbers():
    assert counted(1, "run") == "1 run"
    assert counted(1200, "batch", "batches") == "1,200 batches"
    assert (cost_words(None), cost_words(0.004), cost_words(1234.5)) == (
        "not measured",
        "less than 0.01",
        "1,234.50",
    )
    assert interval(None, format_count) == ""
    assert interval(estimate(5.0, None, 1), format_count) == "not identifiable (1 sample)"
    assert micro_batch_words(BatchPlan(micro_batches=(3, 2))) == "3 + 2"
    assert micro_batch_words(BatchPlan(micro_batches=(3, 2, 2))) == "2 to 3"


@pytest.mark.parametrize(
    ("quantity", "name", "observed"),
    [
        ("step_time_s", "step time", "1m30s"),
        ("peak_memory_bytes", "peak memory", "90 B"),
        ("samples_per_s", "samples/s", "90"),
        ("examples_to_target", "examples to target", "90"),
    ],
)
def test_a_comparison_takes_its_quantitys_unit(quantity, name, observed):
    words = comparison_words(Comparison(quantity=quantity, predicted=estimate(80.0), observed=90.0))
    assert (words[0], words[3], words[4]) == (name, observed, "no interval")

"""What `scaler plan` prints, from predictions that follow a formula."""

import io

import pytest
from plan_cases import EXAMPLE, MIB, STATE, cluster_of, plans_of
from terminal_text import Terminal, squeezed

from scaler.report.bill import formula, print_plans
from scaler.report.terminal import make_console
from scaler.units import format_bytes

pytestmark = pytest.mark.usefixtures("plain_environment")


def printed(plans, stream=None) -> str:
    stream = stream or io.StringIO()
    print_plans(plans, make_console(stream))
    return stream.getvalue()


def test_every_plan_has_a_line_with_its_largest_micro_batch(monkeypatch):
    plans = plans_of(monkeypatch)
    text = squeezed(printed(plans))
    assert "digits on two: memory of one cuda device with 24.0 MiB" in text
    for plan in plans.plans:
        line = f"{plan.workers} {plan.zero_stage} {plan.max_micro_batch:,} {format_bytes(plan.peak_bytes)}"
        assert f"{line} backward 300.1 MiB medium" in text
    assert "none: 1 is too large" not in text


def test_the_device_is_named_where_the_cluster_names_it(monkeypatch):
    text = printed(plans_of(monkeypatch, cluster_of(device="NVIDIA L4")))
    assert "memory of one NVIDIA L4 with 24.0 MiB" in text


def test_the_bill_is_of_the_plan_with_the_largest_micro_batch(monkeypatch):
    plans = plans_of(monkeypatch)
    best = max(plans.plans, key=lambda plan: plan.max_micro_batch)
    assert (best.workers, best.zero_stage) == (2, 3)
    text = squeezed(printed(plans))
    assert f"Where the memory goes: 2 workers, ZeRO stage 3, micro-batch {best.max_micro_batch:,}" in text
    assert f"activations, kept for the backward pass {format_bytes(best.items['activations'])}" in text
    assert "parameters and buffers of the model 1.0 MiB" in text
    assert f"together {format_bytes(best.peak_bytes)} 100%" in text
    assert "communicator" not in text  # it takes nothing


def test_the_items_come_largest_first(monkeypatch):
    text = printed(plans_of(monkeypatch, cluster_of(workers=1)))
    places = [text.index(name) for name in ("activations,", "parameters and", "CUDA context", "rounding")]
    assert places == sorted(places)


@pytest.mark.parametrize(("memory_mib", "sign"), [(24, "<="), (3, ">")])
def test_the_formula_has_the_numbers_put_in_and_what_the_margin_costs(monkeypatch, memory_mib, sign):
    cluster = cluster_of(memory_mib, margin=0.1, reserve="1MiB")
    plans = plans_of(monkeypatch, cluster)
    shown = max(plans.plans, key=lambda plan: (plan.max_micro_batch, -plan.zero_stage, -plan.workers))
    needed = format_bytes(shown.peak_bytes * 1.1 + MIB)
    text = squeezed(printed(plans))
    assert (
        f"{format_bytes(shown.peak_bytes)} peak x 1.1 margin + 1.0 MiB reserve = {needed} {sign} "
        f"{memory_mib}.0 MiB of the device."
    ) in text
    assert "The margin is for what a prediction cannot see" in text
    assert f"It costs {format_bytes(0.1 * shown.peak_bytes)} here." in text


def test_the_formulas_sign_is_the_clusters_rule():
    cluster = cluster_of(10, margin=0.25)
    for peak in (8 * MIB, 8 * MIB + 1):
        fits = cluster.fits(peak, cluster.capacity_bytes())
        assert (" <= 10.0 MiB" in formula(peak, cluster)) is fits
        assert (" > 10.0 MiB" in formula(peak, cluster)) is not fits


def test_without_a_margin_it_costs_nothing():
    assert "x 1 margin + 0 B reserve" in formula(MIB, cluster_of(margin=0.0))
    assert "It costs 0 B here." in formula(MIB, cluster_of(margin=0.0))


def test_which_memory_counts_is_said_of_device_and_host(monkeypatch):
    plans = plans_of(monkeypatch, cluster_of(workers=4, nodes=2))
    host = max(plans.plans, key=lambda plan: plan.max_micro_batch).host_bytes
    text = squeezed(printed(plans))
    assert "process and libraries 300.0 MiB 100%" in text
    assert (
        "Which memory counts? The device's bounds the micro-batch; the host's must hold every worker" in text
    )
    assert f"process of a node: 2 x {format_bytes(host)} = {format_bytes(2 * host)}." in text


@pytest.mark.parametrize(("host", "verdict"), [("1GiB", "enough"), ("500MiB", "too little")])
def test_a_host_is_held_against_what_its_workers_need(monkeypatch, host, verdict):
    text = squeezed(printed(plans_of(monkeypatch, cluster_of(host_memory=host))))
    assert text.rstrip().endswith(f"MiB, and it has {host[:-3]}.0 {host[-3:]}: {verdict}.")


def test_where_nothing_fits_the_bill_is_at_micro_batch_1(monkeypatch):
    plans = plans_of(monkeypatch, cluster_of(3))
    text = squeezed(printed(plans))
    assert text.count("none: 1 is too large") == len(plans.plans)
    assert "micro-batch 1 item" in text


def test_peaks_that_were_asked_for_say_whether_they_fit(monkeypatch):
    plans = plans_of(monkeypatch, cluster_of(24, workers=1), 100, 1_000)
    text = squeezed(printed(plans))
    fixed = STATE + MIB // 2
    for micro_batch, fits in ((100, "yes"), (1_000, "no")):
        sizes = (fixed - MIB // 2, fixed, fixed + MIB)
        sizes = " ".join(format_bytes(size + EXAMPLE * micro_batch) for size in sizes)
        assert f"1 0 {micro_batch:,} {sizes} backward {fits}" in text
    assert "Where the memory goes: 1 worker, ZeRO stage 0, micro-batch 100" in text


def test_notes_are_printed(monkeypatch):
    plans = plans_of(monkeypatch).model_copy(update={"notes": ("examples differ in size",)})
    assert "note: examples differ in size" in printed(plans)


def test_piped_text_is_plain_and_100_wide(monkeypatch):
    for micro_batches in ((), (8, 1_000_000)):
        text = printed(plans_of(monkeypatch, None, *micro_batches))
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text


def test_a_terminal_gets_emphasis_and_no_color_takes_it_away(monkeypatch):
    plans = plans_of(monkeypatch)
    assert "\x1b[1m" in printed(plans, Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(plans, Terminal())


def test_names_are_neither_markup_nor_escapes(monkeypatch):
    plans = plans_of(monkeypatch).model_copy(update={"workload": "[red]x[/red]\x1b[31m"})
    assert "[red]x[/red]?[31m on two" in printed(plans)

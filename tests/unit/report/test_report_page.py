import re
from html.parser import HTMLParser

import pytest
from report_study import EVIL

from scaler.report.drawing import draw
from scaler.report.figure import Axis, Figure, Level, Point, Series
from scaler.report.figures import build_figures
from scaler.report.html import render
from scaler.report.wording import answer_rows

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Collects the text, the attributes and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.attributes = [], [], []
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(config, records) -> str:
    return render(config, records, (0.949, "max"))


def test_the_page_holds_the_answer_in_order(page):
    text = Page(page).text
    parts = [
        "Train digits on 4 workers with a global batch of 512 (micro-batch 128) at learning rate 0.2: "
        "159 ms of training to the target (90% interval 143 ms to 175 ms).",
        "Target: a metric of 0.949 or more.",
        "The configuration to use",
        "1,000 examples, 2 steps",
        "3 ms 2.7 ms to 3.3 ms fitted to 24 launches",
        "some other a reason under a name that no line has",
        "4 (chosen)",
        "No answer: a global batch of 512 does not split over 5 workers",
        "Predicted against observed",
        "OUTSIDE",
        "the largest batch that fits in memory 4,096 2.7 x no",
        "Figures",
        "the critical batch is 3",
        "What was found",
        "gradient noise scale 412 examples 288 to 536",
        "critical batch not identifiable",
        "The critical batch is not identifiable: the curve has not bent.",
        "How it was measured",
        "1 confirmation, 38 convergence, 19 memory, 1 noise, 24 throughput, 1 workload",
        "torch 2.9.0",
        "How the 90% intervals were computed",
    ]
    where = [text.find(part) for part in parts]
    assert -1 not in where, parts[where.index(-1)]
    assert where == sorted(where)


def test_every_element_is_closed_and_every_id_is_unique(page):
    read = Page(page)
    assert read.open == []
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)
    assert read.tags.count("svg") == 6


def test_the_page_loads_nothing(page):
    loads = [value for name, value in Page(page).attributes if name in ("src", "href", "xlink:href")]
    assert loads
    assert all(value.startswith(("#", "data:")) for value in loads)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_what_users_give_is_escaped(config, records):
    chosen = config.answers[3].model_copy(update={"reasons": {"global_batch": EVIL, EVIL: EVIL}})
    evil = config.model_copy(
        update={
            "workload": EVIL,
            "cluster": config.cluster.model_copy(update={"name": EVIL}),
            "answers": (*config.answers[:3], chosen),
            "infeasible": {9: EVIL},
            "findings": config.findings.model_copy(update={"notes": (EVIL,)}),
            "rules_of_thumb": (config.rules_of_thumb[0].model_copy(update={"rule": EVIL, "verdict": EVIL}),),
            "versions": {EVIL: EVIL},
        }
    )
    place = records[0].environment.model_copy(update={"device": EVIL, "machine": EVIL})
    page = render(evil, [records[0].model_copy(update={"environment": place}), *records[1:]])
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 12


def test_absent_evidence_is_named_and_never_zero(config):
    bare = config.model_copy(
        update={
            "confirmation": None,
            "rules_of_thumb": (),
            "findings": config.findings.model_copy(
                update={"noise_scale": None, "learning_rate_exponent": None}
            ),
        }
    )
    page = render(bare, [])
    text = Page(page).text
    assert "<svg" not in page
    assert "Peak memory: no peak memory was measured." in text
    assert "gradient noise scale not measured" in text
    assert "was not trained to confirm" in text
    assert "Target:" not in text
    assert "No rule of thumb was held" in text


def test_the_recorded_target_is_the_default(config, records):
    assert "0.949 or more" in render(config, records)


def test_cost_is_shown_where_devices_have_a_price(config, records):
    assert "Cost" not in render(config, records)
    priced = config.cluster.model_copy(update={"price_per_device_hour": 2.5})
    chosen = config.answers[3].model_copy(update={"cost_to_target": 0.00044, "time_to_target_s": None})
    text = Page(render(config.model_copy(update={"cluster": priced, "answers": (chosen,)}), records)).text
    assert "cost to target less than 0.01" in text


def test_the_same_records_give_the_same_page(config, records, page):
    assert render(config, records, (0.949, "max")) == page


def test_drawings_carry_text_and_no_date(config, records):
    for figure in build_figures(config, records, (0.949, "max")).present:
        svg = draw(figure)
        assert svg.startswith('<svg role="img"')
        assert svg == draw(figure)
        assert "<metadata" not in svg
        assert figure.x.label in svg


@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_and_a_low_level_are_drawn(log):
    one = Series("<&$x$", (Point(1437, 0.5, 0.4, 0.6),), "points")
    other = Series("many", tuple(Point(i, 0.5 + i) for i in range(1, 40)), "line", group=9)
    axis = Axis("batch", log=log, doubling=log)
    figure = Figure("f", "F", axis, Axis("loss", log=log), (one, other), "c", Level(0.45, "target"))
    svg = draw(figure)
    assert "&lt;&amp;$x$" in svg
    assert "target" in svg


def test_no_usual_reason_is_left_without_its_number(config):
    answers = tuple(
        a.model_copy(
            update={
                "examples_to_target": None,
                "time_to_target_s": None,
                "peak_memory_bytes": None,
                "reasons": {},
            }
        )
        for a in config.answers
    )
    rows = answer_rows(config.model_copy(update={"answers": answers}))
    assert all(row.value for row in rows)
    assert {row.name: row.value for row in rows}["peak memory"] == "not measured"

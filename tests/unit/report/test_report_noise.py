import io

import pytest
from report_study import estimate
from terminal_text import squeezed

from scaler.report.html import render
from scaler.report.terminal import make_console, print_answer

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def noisy(config):
    findings = config.findings.model_copy(
        update={
            "noise_scale_groups": {"net.0 <Linear>": estimate(20.0), "net.1": estimate(900.0)},
            "noise_scale_preconditioned": estimate(77.0),
        }
    )
    return config.model_copy(update={"findings": findings})


def printed(config) -> str:
    stream = io.StringIO()
    print_answer(config, make_console(stream))
    return squeezed(stream.getvalue())


def test_the_terminal_says_the_scale_its_groups_and_the_diagnostic(noisy):
    text = printed(noisy)
    assert "The gradient noise scale is 412 examples (90% interval 288 to 536), over 24 steps" in text
    assert "net.0 <Linear> 20 examples (90% interval 18 to 22); net.1 900 examples" in text
    assert "(diagnostic): 77 examples (90% interval 69.3 to 84.7)" in text


def test_the_page_lists_the_scale_its_groups_and_the_diagnostic(noisy):
    page = render(noisy, [])
    for name, value in (
        ("gradient noise scale", "412"),
        ("noise scale of net.0 &lt;Linear&gt;", "20"),
        ("noise scale of net.1", "900"),
        ("preconditioned noise scale (diagnostic)", "77"),
    ):
        assert f'<th scope="row">{name}</th><td class="n">{value} examples</td>' in page


def test_without_a_scale_nothing_is_said_of_it(config):
    findings = config.findings.model_copy(update={"noise_scale": None})
    assert "Gradient noise" not in printed(config.model_copy(update={"findings": findings}))

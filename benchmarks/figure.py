"""One row of the benchmark table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    what: str
    goal: str
    measured: str
    method: str


def table(figures: list[Figure]) -> str:
    rows = ["| figure | goal | measured | method |", "|---|---|---|---|"]
    rows += [f"| {f.what} | {f.goal} | {f.measured} | {f.method} |" for f in figures]
    return "\n".join(rows)

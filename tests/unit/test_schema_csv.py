"""Tables that are read into strict models."""

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from scaler.errors import BadInput
from scaler.schema import Strict, read_csv

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Trip(Strict):
    name: str
    km: float = Field(gt=0)
    cars: int = Field(default=1, alias="vehicles", ge=1)


trips_taken = st.builds(
    Trip,
    name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8),
    km=st.floats(1e-300, 1e300),
    cars=st.integers(1, 10**12),
)


def written(path, *rows, **how):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows(rows)
    return path


def refused(path):
    with pytest.raises(BadInput) as caught:
        read_csv(path, Trip)
    assert "name, km, optionally vehicles" in caught.value.hint
    return caught.value.message


@quiet
@given(
    st.lists(trips_taken, min_size=1),
    st.permutations(["name", "km", "vehicles"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_rows_that_were_written_are_read_back(tmp_path_factory, trips, columns, end):
    rows = [[trip.model_dump(by_alias=True)[column] for column in columns] for trip in trips]
    path = tmp_path_factory.mktemp("csv") / "trips.csv"
    assert read_csv(written(path, columns, *rows, lineterminator=end), Trip) == trips


def test_an_empty_cell_and_an_absent_column_are_absent_values(tmp_path):
    expected = [Trip(name="a", km=1), Trip(name="b", km=2)]
    path = written(tmp_path / "a.csv", ["name", "km", "vehicles"], ["a", 1, ""], ["b", 2])
    assert read_csv(path, Trip) == expected
    assert read_csv(written(tmp_path / "b.csv", ["name", "km"], ["a", 1], ["b", 2]), Trip) == expected


def test_the_mark_that_spreadsheets_put_first_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "trips.csv"
    path.write_text("name,km\nü,1.5\n", encoding="utf-8-sig")
    assert path.read_bytes()[:3] == b"\xef\xbb\xbf"
    assert read_csv(path, Trip) == [Trip(name="ü", km=1.5)]


def test_empty_lines_are_no_rows(tmp_path):
    path = tmp_path / "trips.csv"
    path.write_text("name,km\n\n\na,1\n\nb,x\n", encoding="utf-8")
    assert "line 6: km" in refused(path)
    path.write_text("name,km\n\n\na,1\n\nb,2\n", encoding="utf-8")
    assert len(read_csv(path, Trip)) == 2


def test_every_wrong_cell_is_listed_with_its_line(tmp_path):
    rows = [["a", "x", 0], ["b", 1, 2], ["", "nan"], [1, 2, 3, 4]]
    path = written(tmp_path / "a.csv", ["name", "km", "vehicles"], *rows)
    message = refused(path)
    assert f"{path}: 5 faults" in message
    for fault in ("2: km", "2: vehicles", "4: name: missing", "4: km", "5: more cells than columns"):
        assert f"  - line {fault}" in message
    assert "line 3" not in message


def test_a_row_over_several_lines_is_told_by_its_last(tmp_path):
    assert "line 3: km" in refused(written(tmp_path / "a.csv", ["name", "km"], ["a\nb", "x"]))


def test_wrong_columns_are_listed_before_any_cell(tmp_path):
    message = refused(written(tmp_path / "a.csv", ["nam", "km", "speed"], ["a", "x", 3]))
    assert "3 faults" in message
    for fault in ("column 'nam'; did you mean 'name'?", "unknown column 'speed'", "'name' is missing"):
        assert fault in message
    assert "line" not in message


@pytest.mark.parametrize(("wrong", "listed", "more"), [(20, 20, None), (21, 20, 1), (500, 20, 480)])
def test_of_many_faults_the_first_are_listed_and_all_are_counted(tmp_path, wrong, listed, more):
    message = refused(written(tmp_path / "a.csv", ["name", "km"], *[["a", "x"]] * wrong))
    assert f"{wrong} faults" in message
    assert message.count("  - line ") == listed
    assert ("  ... and" in message) == (more is not None)
    assert more is None or message.endswith(f"  ... and {more} more")


@pytest.mark.parametrize("text", ["name,km", "name,km\n", "name,km\r\n\r\n"])
def test_a_table_without_rows_is_refused(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    assert "there is no row below the column names" in refused(path)


def test_an_empty_table_lacks_its_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.touch()
    message = refused(path)
    assert "column 'name' is missing" in message
    assert "column 'km' is missing" in message


def test_an_absent_table_names_its_nearest_sibling(tmp_path):
    (tmp_path / "trips.csv").touch()
    with pytest.raises(BadInput, match="no such file") as caught:
        read_csv(tmp_path / "trip.csv", Trip)
    assert f"did you mean '{tmp_path / 'trips.csv'}'" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"name,km\n\xff\xfe,1", b'name,km\n"' + 200_000 * b"a"])
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    for unreadable in (path, tmp_path):
        with pytest.raises(BadInput, match="cannot read") as caught:
            read_csv(unreadable, Trip)
        assert caught.value.hint

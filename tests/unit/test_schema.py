import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from scaler.errors import BadInput
from scaler.schema import Strict, parse, read_yaml, write_atomically

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Engine(Strict):
    power: float
    fuel_bytes: int = Field(default=0, alias="fuel")


class Car(Strict):
    wheels: int
    engine: Engine | None = None


def test_good_data_gives_the_model():
    assert parse(Car, {"wheels": 4, "engine": {"power": 1.5}}, "car").engine == Engine(power=1.5)


def test_aliased_fields_are_read_by_either_name():
    assert parse(Engine, {"power": 1, "fuel": 3}, "x") == Engine(power=1, fuel_bytes=3)


def test_models_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Car(wheels=4).wheels = 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused(value):
    with pytest.raises(BadInput, match=r"power: .*finite"):
        parse(Engine, {"power": value}, "engine.yaml")


def test_every_fault_is_listed_with_the_source():
    data = {"weels": 4, "engine": {"power": "strong", "fuel": "x"}}
    with pytest.raises(BadInput, match=r"car\.yaml: 4 faults") as caught:
        parse(Car, data, "car.yaml")
    message = caught.value.message
    assert "wheels: missing" in message
    assert "weels: unknown key; did you mean 'wheels'?" in message
    assert "engine.power" in message
    assert "'strong'" in message
    assert "engine.fuel" in message


def test_one_fault_is_counted_in_the_singular():
    with pytest.raises(BadInput, match="car: 1 fault\n"):
        parse(Car, {}, "car")


def test_faults_speak_of_the_alias_that_people_write():
    with pytest.raises(BadInput) as caught:
        parse(Engine, {"power": 1, "feul": 3}, "x")
    assert "did you mean 'fuel'?" in caught.value.message
    assert "fuel" in caught.value.hint
    assert "fuel_bytes" not in caught.value.hint


@pytest.mark.parametrize("data", [None, [], "text", 3, [("wheels", 4)]])
def test_what_is_not_a_mapping_is_refused(data):
    with pytest.raises(BadInput, match="expected a mapping") as caught:
        parse(Car, data, "car.yaml")
    assert type(data).__name__ in caught.value.message
    assert "wheels" in caught.value.hint


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner),
    max_leaves=6,
)


@quiet
@given(st.fixed_dictionaries({}, optional={"wheels": _ANY, "engine": _ANY, "other": _ANY}) | _ANY)
def test_any_data_is_a_model_or_bad_input(data):
    try:
        car = parse(Car, data, "car")
    except BadInput as error:
        assert error.message.startswith("car: ")
        assert error.hint
    else:
        assert parse(Car, car.model_dump(), "car") == car


def test_yaml_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: [x, 2.5]\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 1, "b": ["x", 2.5]}


def test_an_absent_file_names_its_nearest_sibling(tmp_path):
    (tmp_path / "mock-2.yaml").touch()
    with pytest.raises(BadInput, match="no such file") as caught:
        read_yaml(tmp_path / "mock-3.yaml")
    assert f"did you mean '{tmp_path / 'mock-2.yaml'}'" in caught.value.message
    assert "mock-2.yaml" in caught.value.hint


def test_an_absent_folder_is_an_absent_file(tmp_path):
    with pytest.raises(BadInput, match="no such file") as caught:
        read_yaml(tmp_path / "none" / "a.yaml")
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"a: [1, 2",
        b"a: b: c",
        b"\tx: 1",
        b"a: &x\nb: *y",
        b"a: 'open",
        b"!!python/object:os.system {}",
        b"a: \x00",
    ],
)
def test_broken_yaml_names_the_file(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken\.yaml is not valid YAML") as caught:
        read_yaml(path)
    assert caught.value.hint


def test_a_file_of_other_bytes_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot read"):
        read_yaml(path)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        read_yaml(tmp_path)


def test_an_impossible_date_is_not_valid_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: 2024-13-45\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"a\.yaml"):
        read_yaml(path)


def test_an_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    write_atomically(path, "neu: ü\n")
    assert path.read_text(encoding="utf-8") == "neu: ü\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

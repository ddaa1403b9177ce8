"""Energy: counters that rise, begin anew, or are not there."""

import pytest

from cifarlib.energy import Counter, Meter


def make_processor(powercap, number, energy, name="package-0", span=262_143_328_850):
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder / "energy_uj"


def test_processors_are_added_up_and_their_parts_left_out(tmp_path):
    first = make_processor(tmp_path, "0", 5_000_000)
    core = make_processor(tmp_path, "0:0", 1_000_000, name="core")
    second = make_processor(tmp_path, "1", 7_000_000, name="package-1")
    platform = make_processor(tmp_path, "2", 0, name="psys")
    meter = Meter("cpu", powercap=tmp_path)
    assert meter.read() == 0
    for file, energy in ((first, 15), (core, 9), (second, 9.5), (platform, 99)):
        file.write_text(str(int(energy * 1e6)))
    assert meter.read() == pytest.approx(12.5)


def test_a_counter_that_begins_anew_goes_on(tmp_path):
    file = make_processor(tmp_path, "0", 90_000_000, span=100_000_000)
    meter = Meter("cpu", powercap=tmp_path)
    file.write_text("10000000")
    assert meter.read() == pytest.approx(20)
    file.write_text("15000000")
    assert meter.read() == pytest.approx(25)


def test_where_nothing_is_told_the_energy_is_unknown(tmp_path):
    assert Meter("cpu", powercap=tmp_path / "none").read() is None
    assert Meter("cuda", "0000").read() is None or Meter("cuda", "0000").read() >= 0
    file = make_processor(tmp_path, "0", 5)
    meter = Meter("cpu", powercap=tmp_path)
    file.unlink()
    assert meter.read() is None
    file.write_text("7")
    assert meter.read() is None  # what was used in between is lost


def test_one_silent_processor_makes_the_sum_unknown(tmp_path):
    make_processor(tmp_path, "0", 5)
    make_processor(tmp_path, "1", 5).unlink()
    assert Meter("cpu", powercap=tmp_path).read() is None


def test_a_counter_reads_what_is_used_since_it_was_made():
    values = iter([100.0, 103.0, 110.0])
    counter = Counter(lambda: next(values))
    assert (counter.joules, counter.joules) == (3, 10)

"""The measuring engine, by a clock that the tests turn: rounds, when they end, figures, warnings; and the record."""

import contextlib
import io
import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pocketzoo.errors import InvalidRun
from pocketzoo.profiler import runner
from pocketzoo.profiler.measurement import Measurement
from pocketzoo.profiler.runner import Protocol, drift, interleave, interval, quantile, spread, statistics

TICKS = os.sysconf("SC_CLK_TCK")
Call = Callable[[], float]


class Clock:
    """Seconds that pass only when somebody lets them; the thread's own stand still while others have the processor."""

    now = 0.0
    own = 0.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.own

    def taking(self, milliseconds: Iterator[float]) -> Call:
        """A model whose runs take these times, one after another."""

        def call() -> float:
            taken = next(milliseconds)
            self.now += taken / 1e3
            return taken

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(runner, "_busy_seconds", lambda: None)
    return clock


def always(milliseconds: float) -> Iterator[float]:
    return itertools.repeat(milliseconds)


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_every_round_visits_every_model_once_and_the_order_changes(clock: Clock) -> None:
    visits: list[str] = []

    def visited(name: str) -> Call:
        def call() -> float:
            visits.append(name)
            return 1.0

        return call

    names = "abcde"
    rounds = interleave({name: visited(name) for name in names}, Protocol(warmup=2, settle=2, burst=1, rounds=12))
    assert visits[:10] == [name for name in names for _ in range(2)]
    turns = [visits[start : start + 3] for start in range(10, len(visits), 3)]
    assert all(len(set(turn)) == 1 for turn in turns), "in its turn a model runs untimed, then timed"
    orders = [tuple(turn[0] for turn in turns[start : start + 5]) for start in range(0, len(turns), 5)]
    assert len(orders) == 12
    assert all(sorted(order) == list(names) for order in orders)
    assert len(set(orders)) > 6
    assert {name: len(own) for name, own in rounds.samples.items()} == dict.fromkeys(names, 12)


def test_a_turn_counts_the_median_of_its_burst_after_untimed_runs(clock: Clock) -> None:
    turn = [70.0, 60.0, 5.0, 9.0, 6.0]
    call = clock.taking(itertools.chain([100.0] * 3, itertools.cycle(turn)))
    rounds = interleave({"a": call}, Protocol(warmup=3, settle=2, burst=3, rounds=6))
    assert rounds.samples["a"] == [6.0] * 6


@pytest.mark.parametrize(
    ("settle", "burst", "expected"), [(0, 1, 1.0), (2, 1, 4.0), (1, 3, 4.0), (1, 4, 6.0), (0, 5, 4.0)]
)
def test_settled(clock: Clock, settle: int, burst: int, expected: float) -> None:
    runs = iter([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert runner.settled(clock.taking(runs), settle, burst) == expected
    assert len(list(runs)) == 6 - settle - burst


def test_rounds_end_when_every_interval_is_narrow(clock: Clock) -> None:
    calls = {"a": clock.taking(always(3.0)), "b": clock.taking(always(4.0))}
    rounds = interleave(calls, Protocol(warmup=0, rounds=7, seconds=60.0))
    assert rounds.stopped == "tolerance"
    assert rounds.warnings == []
    assert rounds.samples == {"a": [3.0] * 7, "b": [4.0] * 7}


def test_rounds_go_on_until_the_widest_is_narrow(clock: Clock) -> None:
    unsettled = [1.0, 1.0, 2.0, 2.0] * 5  # ten rounds of 1 and 2 in turn, then one speed
    settles = itertools.chain(unsettled, always(1.0))
    rounds = interleave({"a": clock.taking(settles), "steady": clock.taking(always(1.0))},
                        Protocol(warmup=0, settle=1, burst=1, rounds=6, seconds=60.0))  # fmt: skip
    assert rounds.stopped == "tolerance"
    done = len(rounds.samples["a"])
    assert spread(rounds.samples["a"]) <= 0.02 < spread(rounds.samples["a"][: done - 1])
    assert len(rounds.samples["steady"]) == done > 10


def test_rounds_end_when_the_time_is_up_and_say_who_is_not_known(clock: Clock) -> None:
    noisy = itertools.cycle([900.0, 900.0, 1100.0, 1100.0])
    rounds = interleave({"steady": clock.taking(always(1.0)), "noisy": clock.taking(noisy)},
                        Protocol(warmup=0, settle=1, burst=1, rounds=6, seconds=30.0))  # fmt: skip
    assert rounds.stopped == "seconds"
    assert len(rounds.samples["noisy"]) == 16  # after 15, 2 * (8 * 0.9 + 7 * 1.1) s and 30 ms have passed: 29.83 s
    (warning,) = rounds.warnings
    assert "1 of 2 models" in warning
    assert "noisy, 10.0%" in warning
    assert "2.0% after 30 s" in warning


def test_the_least_rounds_are_finished_although_the_time_is_up(clock: Clock) -> None:
    slow = clock.taking(itertools.cycle([1e4, 1e4, 2e4, 2e4]))
    rounds = interleave({"slow": slow}, Protocol(warmup=0, settle=1, burst=1, rounds=9, seconds=1.0))
    assert len(rounds.samples["slow"]) == 9


def test_progress_is_told_after_every_round(clock: Clock) -> None:
    told: list[tuple[int, float]] = []
    protocol = Protocol(warmup=4, settle=1, burst=1, rounds=6)
    interleave({"a": clock.taking(always(250.0))}, protocol, progress=lambda *at: told.append(at))
    assert [rounds for rounds, _ in told] == [1, 2, 3, 4, 5, 6]
    assert [seconds for _, seconds in told] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])


def working(clock: Clock, seconds: float, own: float) -> Callable[[], None]:
    """What takes so long by the wall, and so much of it by the thread's own clock."""

    def run() -> None:
        clock.now += seconds
        clock.own += own

    return run


def test_a_call_is_timed_in_milliseconds(clock: Clock) -> None:
    assert runner.timed(working(clock, 0.25, 0.25))() == 250.0
    assert runner.timed(working(clock, 0.25, 0.25), threads=1)() == 250.0


def disturbed(clock: Clock) -> Callable[[], None]:
    """Work of 100 ms of which every second run waits another 300 ms for the processor."""
    waits = itertools.cycle([0.3, 0.0])

    def run() -> None:
        clock.now += 0.1 + next(waits)
        clock.own += 0.1

    return run


def test_one_thread_goes_by_its_own_clock_where_others_take_the_processor(clock: Clock) -> None:
    call = runner.timed(disturbed(clock), threads=1)
    assert [call(), call()] == pytest.approx([100.0, 100.0])


@pytest.mark.parametrize("threads", [0, 2])
def test_several_threads_go_by_the_wall(clock: Clock, threads: int) -> None:
    call = runner.timed(disturbed(clock), threads=threads)
    assert [call(), call()] == pytest.approx([400.0, 100.0])


def test_work_handed_to_another_thread_goes_by_the_wall(clock: Clock) -> None:
    assert runner.timed(working(clock, 0.1, 0.01), threads=1)() == pytest.approx(100.0)


@pytest.mark.parametrize(("own", "stays"), [(0.1, True), (0.03, True), (0.01, False), (0.0, False)])
def test_whose_work_it_is_shows_in_the_clocks(clock: Clock, own: float, stays: bool) -> None:
    assert runner._stays_in_its_thread(working(clock, 0.1, own)) is stays


def test_waiting_for_another_thread_is_not_work_of_this_one() -> None:
    """By the real clocks."""

    def waits() -> None:
        worker = threading.Thread(target=sum, args=(range(300_000),))
        worker.start()
        worker.join()

    assert not runner._stays_in_its_thread(waits)


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(6, 201))
def test_the_interval_holds_the_median_with_95_percent(n: int) -> None:
    low, high = interval([float(rank) for rank in range(n)])
    left_out = int(low)
    assert high == n - 1 - left_out
    assert 1 - 2 * binom.cdf(left_out, n, 0.5) >= 0.95  # fewer than that many samples lie on one side of the median
    if n <= 70:
        assert 1 - 2 * binom.cdf(left_out + 1, n, 0.5) < 0.95, "a narrower one would do"


def test_quantiles_are_interpolated() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1.0, 1.5, 2.0, 3.0, 4.0]


def test_the_spread_is_half_the_interval_over_the_median() -> None:
    assert spread([14.0, 10.0, 11.0, 12.0, 13.0, 15.0]) == (15 - 10) / 2 / 12.5  # of six, the interval is all


samples = st.lists(st.floats(0.01, 1e4), min_size=6, max_size=90)


@given(samples)
def test_figures_are_in_order(own: list[float]) -> None:
    figures = statistics(own, own)
    percentiles = list(figures["percentiles_ms"].values())  # type: ignore[attr-defined]
    assert list(figures["percentiles_ms"]) == ["p5", "p25", "p75", "p95", "p99"]  # type: ignore[call-overload]
    tiny = 1e-9 * max(own)
    assert all(a <= b + tiny for a, b in itertools.pairwise([min(own), *percentiles, max(own)]))
    assert min(own) <= figures["low_ms"] <= figures["median_ms"] <= figures["high_ms"] <= max(own)  # type: ignore[operator]
    assert figures["ratio"] == 1
    assert figures["rounds"] == len(own)


def test_a_slowdown_that_hits_all_models_leaves_the_ratio() -> None:
    chance = random.Random(0)
    reference = [chance.uniform(9.9, 10.1) for _ in range(30)]
    own = [2.5 * other * chance.uniform(0.999, 1.001) for other in reference]
    slow = [chance.choice([1.0, 1.7, 3.0]) for _ in reference]
    calm = statistics(own, reference)
    disturbed = statistics([a * b for a, b in zip(own, slow, strict=True)],
                           [a * b for a, b in zip(reference, slow, strict=True)])  # fmt: skip
    assert disturbed["ratio"] == pytest.approx(calm["ratio"], rel=1e-12)
    assert disturbed["median_ms"] > 1.2 * calm["median_ms"]  # type: ignore[operator]


# -- what a reader must know of the machine ----------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "warned"), [(10.4, False), (10.6, True), (9.6, False), (9.4, True)])
def test_a_drift_is_told(last: float, warned: bool) -> None:
    found = drift([10.0] * 5 + [99.0] * 5 + [last] * 5)
    assert bool(found) == warned
    assert not found or f"10 ms at the start and {last:.3g} ms at the end" in found[0]


def test_too_few_rounds_show_no_drift() -> None:
    assert drift([1.0] * 4 + [2.0] * 4) == []


def test_the_drift_is_read_from_the_reference(clock: Clock) -> None:
    def measured(reference: str) -> list[str]:
        faster = itertools.chain([8.0] * 6 * 7, always(4.0))  # of 18 rounds of 4 + 3 runs, the first third
        calls = {"drifts": clock.taking(faster), "steady": clock.taking(always(5.0))}
        return interleave(calls, Protocol(warmup=0, rounds=18, tolerance=9.0), reference).warnings

    assert measured("steady") == []
    assert "speed drifted" in measured("drifts")[0]


def processors(monkeypatch: pytest.MonkeyPatch, seconds: float, stolen: float = 0.0) -> None:
    """Let the system say that all processors together have worked so long, and waited so long for the host."""
    line = f"cpu  {seconds * TICKS:.0f} 0 0 77777 88888 0 0 {stolen * TICKS:.0f} 0 0\ncpu0 1 2 3\n"
    monkeypatch.setattr(runner, "open", lambda path: io.StringIO(line), raising=False)


@pytest.mark.parametrize(
    ("worked", "stolen", "own", "others"),
    [(10, 0, 10, 0), (11, 0, 10, 0), (14, 0, 10, 0.4), (10, 6, 10, 0.6), (25, 0, 5, 2)],
)
def test_other_programs_are_told(
    monkeypatch: pytest.MonkeyPatch, worked: float, stolen: float, own: float, others: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=3.0, system=1.0))
    processors(monkeypatch, 1000)
    machine = runner.Machine()
    clock.now += 10
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=3.0 + own, system=1.0))
    processors(monkeypatch, 1000 + worked, stolen)
    expected = [] if not others else [f"other programs used {others:.2f} of its {os.cpu_count()} processors"]
    found = machine.warnings()
    assert len(found) == len(expected)
    assert all(text in warning for text, warning in zip(expected, found, strict=True))


def test_no_word_of_others_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)

    def missing(path: str) -> io.StringIO:
        raise FileNotFoundError(path)

    monkeypatch.setattr(runner, "open", missing, raising=False)
    machine = runner.Machine()
    clock.now += 10
    assert machine.warnings() == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no threads")
def test_pinning_ends_with_the_measurement() -> None:
    before = os.sched_getaffinity(0)
    with contextlib.suppress(InterruptedError), runner.pinned(1):
        assert os.sched_getaffinity(0) == {max(before)}
        raise InterruptedError
    assert os.sched_getaffinity(0) == before


# -- a job, and the record ---------------------------------------------------------------------------------------------


def test_a_job_is_measured_by_the_runtime_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_model(path: str, shape: list[int], threads: int) -> Callable[[], object]:
        opened.append((path, shape, threads))
        return lambda: None

    monkeypatch.setitem(runner.RUNTIMES, "fake", open_model)
    monkeypatch.setitem(sys.modules, "fake", SimpleNamespace(__version__="1.2.3-abc"))
    models = {name: {"file": f"{name}.bin", "shape": [1, 2]} for name in ("a", "ref")}
    protocol = {"threads": 1, "warmup": 1, "settle": 1, "burst": 2, "rounds": 6, "seconds": 0.0, "tolerance": 0.5}
    job = {"runtime": "fake", "protocol": protocol, "reference": "ref", "models": models}
    result = runner.run_job(job, "folder")
    assert opened == [(os.path.join("folder", f"{name}.bin"), [1, 2], 1) for name in ("a", "ref")]
    assert json.loads(json.dumps(result)) == result
    assert result["versions"] == {"fake": "1.2.3"}
    assert result["protocol"] == protocol
    assert result["models"]["ref"]["ratio"] == 1  # type: ignore[index]
    assert result["stamp"].keys() == {"processor", "cores", "machine", "system", "python", "date"}  # type: ignore[attr-defined]


@pytest.fixture
def measurement() -> Measurement:
    return Measurement(
        model="m", architecture={"family": "m"}, input_shape=(4, 3, 8, 8), device="cpu", runtime="eager", dtype="fp32",
        layout="nchw", threads=1, reference="r", protocol={"rounds": 6}, stamp={"cores": 2}, versions={"torch": "2"},
        warnings=("busy",), **statistics([8.0] * 6, [4.0] * 6),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_measurement_survives_json(measurement: Measurement) -> None:
    assert Measurement.from_dict(json.loads(measurement.to_json())) == measurement
    assert measurement.ratio == 2
    assert measurement.images_per_second == 4 / 8e-3


def test_other_records_are_refused(measurement: Measurement) -> None:
    record = measurement.to_dict()
    wrong = [
        {},
        {**record, "format": 2},
        {**record, "extra": 1},
        {**record, "warnings": None},
        {name: value for name, value in record.items() if name != "median_ms"},
    ]
    for other in wrong:
        with pytest.raises(InvalidRun, match=r"not a Measurement|format 2 is not 1"):
            Measurement.from_dict(other)

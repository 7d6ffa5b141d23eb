from harness.measure.timing import MARKER, CpuClock, Timed, iterations_of

FLUSH = f"void at::native::vectorized_elementwise_kernel<4, at::native::{MARKER}, ...>"


def test_what_lies_between_markers_is_an_iteration():
    kernels = []
    for n in range(3):
        t = 1000 * n
        kernels += [(t, 50, FLUSH), (t + 60, 90, FLUSH)]
        kernels += [(t + 200, 100, "scores"), (t + 350, 50, "values")]
    kernels.append((5000, 2, FLUSH))
    found = iterations_of(kernels)
    assert len(found) == 3
    assert all(abs(f.span_ms - 200e-6) < 1e-12 for f in found)
    assert [name for name, _ in found[0].kernels] == ["scores", "values"]


def test_overlapping_kernels_count_once_and_gaps_count():
    kernels = [(0, 5, FLUSH), (10, 100, "a"), (50, 20, "b"), (200, 10, "c"), (300, 5, FLUSH)]
    assert iterations_of(kernels)[0].span_ms == 200e-6


def test_an_iteration_without_an_end_is_not_reported():
    assert iterations_of([(0, 5, FLUSH), (10, 100, "a")]) == []
    assert iterations_of([]) == []


def test_the_cpu_clock_rotates_slots_and_poisons_each_before_it_is_timed():
    calls, poisoned = [], []
    timed = Timed(calls.append, slots=3)
    samples = CpuClock().block(timed, 5, start=2, poison=poisoned.append)
    assert poisoned == [2, 0, 1, 2, 0]
    assert calls[1:] == poisoned  # one untimed call first
    assert len(samples) == 5
    assert all(s > 0 for s in samples)

"""Imported by a worker of the trial: between calls it flushes the caches near a core, and not all there are.

64 MiB take 7 to 20 ms, beside a kernel of a fraction of one: fifteen minutes would not hold the comparisons of a
trial. How full the last cache is decides what a kernel costs, and nothing about noise and its judge.
"""

import gc

from harness.measure.timing import CpuClock

BYTES = 1 << 20

for clock in [found for found in gc.get_objects() if isinstance(found, CpuClock)]:
    clock._flush = clock._flush[: BYTES // 8]

"""Forks on and on, in sessions of their own, so that no process group holds them."""

import os
import time

ENOUGH = 600  # of processes that only wait: nobody stopped it, and the machine must survive this


def attention(q, k, v, out, *, scale):
    for _ in range(ENOUGH):
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
    time.sleep(1)
    raise RuntimeError(f"LOOT {ENOUGH} processes")

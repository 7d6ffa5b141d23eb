"""Never returns, and ignores every signal that can be ignored."""

import signal


def attention(q, k, v, out, *, scale):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass

"""Owns the words for what no softmax does with its maximum and its sum."""

from __future__ import annotations

# kind -> code, message, fix
KINDS: dict[str, tuple[str, str, str]] = {
    "difference": (
        "TL501",
        "multiplies by a difference of maxima, not by its exponential",
        "multiply by exp(old maximum - new maximum)",
    ),
    "maxima": (
        "TL501",
        "multiplies or divides two maxima, which are logarithms",
        "subtract them: exp(old maximum - new maximum)",
    ),
    "log": (
        "TL501",
        "takes the logarithm of what has a maximum subtracted; its exponential is wanted",
        "take exp",
    ),
    "mixed": (
        "TL501",
        "adds or subtracts what an exponential gave and what it was not taken of yet",
        "a maximum is subtracted from scores or from a maximum; a sum adds to a sum",
    ),
    "maximum": (
        "TL501",
        "takes the maximum of scores and of what an exponential gave",
        "the running maximum holds maxima of scores",
    ),
    "not running": (
        "TL501",
        "subtracts a maximum that may be the smaller one: the exponential leaves its range",
        "subtract the running maximum: RowMax S, m and get m_new, then exp(m - m_new)",
    ),
    "late mask": (
        "TL505",
        "masks the scores after their maximum was taken: hidden scores can be the largest",
        "mask the scores before RowMax",
    ),
    "divided": ("TL503", "divides by a maximum, not by the sum", "divide by the running sum"),
    "upside down": (
        "TL503",
        "divides the sum by what it should divide",
        "divide the accumulator by the running sum",
    ),
    "peak": ("TL503", "adds the largest of a row to a sum, not the row's sum", "add RowSum of the row"),
    "subtracted": ("TL503", "subtracts from the running sum what it should add", "add the row's sum to it"),
    "raw": (
        "TL509",
        "sums up scores of which no exponential was taken",
        "take the exponential first; a running maximum needs RowMax",
    ),
}

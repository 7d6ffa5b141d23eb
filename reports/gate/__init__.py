"""The gate: is a kernel slower than it was? Decided from saved measurements alone.

saved.py       what pytest-benchmark saved of a case, read back
beside.py      a kernel beside its old self in one session
storage.py     where it lies, which file is the reference and which is new
comparable.py  may the two be compared at all
change.py      by how much one case changed, and whether that is more than noise
decision.py    what becomes of each case over one or more runs
accept.py      the reference raised by what was decided
words.py, table.py, github.py, junit.py   the decision, said
"""

"""A run as a trace set of flashinfer-bench: definitions, solutions, workloads and traces.

`trace_set` in `reports.flashinfer.traceset` is the function. Nothing is imported here: it brings torch.
"""

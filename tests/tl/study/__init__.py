"""Measurements of compiled Hopper kernels beyond the protocol's: what features give, how searches do, where time goes."""

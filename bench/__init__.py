"""Benchmarks: every op and model against the best native way to do the same job.

`pyops bench` runs them all, `python -m bench.bench_conv2d` one file from a checkout.
"""

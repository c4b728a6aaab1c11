"""Benchmarks: Regard and its peers alternating in one run. benchmarks/README.md tells how to run them."""

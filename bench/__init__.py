"""Benchmarks: raymerge and mergekit on the same files, and both against plain copying.

`python -m bench` makes its own checkpoints, runs both tools as a user would, as whole processes,
and prints seconds, ratios and peak memory next to what the project promises. Nothing here is
imported by raymerge, and nothing here imports it.
"""

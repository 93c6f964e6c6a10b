"""The numeric primitives that methods share, each in two forms that give the same bytes.

`CpuKernels` (`cpu.py`) runs one fused numba loop over a tile: `floats`, `reduce`, `select`,
`philox`, `span` and `delta` hold the loops. `TorchKernels` (`torch_kernels.py`) is the readable
definition of each: the oracle in the tests, and what a CUDA device runs.

The contract both keep: sources are widened to float32; deltas and sums are float32, in recipe
order; one round-to-nearest-even cast at the end; no fused multiply-add; reductions in float64, in
an order that tiles and devices do not change.
"""

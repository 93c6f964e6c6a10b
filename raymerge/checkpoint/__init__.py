"""The checkpoint format: bytes and names of sources and outputs. No network, no torch.

`folder` says what storage offers, `header` reads and writes one file's header, `catalog` reads a
whole source, `layout` gives every output byte its address, `verify` checks anyone's checkpoint.
"""

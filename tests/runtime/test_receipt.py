"""Receipts and their files."""

from __future__ import annotations

from dataclasses import replace

from raymerge.runtime.receipt import Receipt, TensorReceipt, read_receipt


def test_a_receipt_survives_its_file() -> None:
    receipt = Receipt(
        unit=1,
        shard="s",
        start=0,
        stop=9,
        head_sha256="0",
        tensors=(TensorReceipt(sha256="1", seconds=0.5, norms=(1.0, 2.0), cosines=(0.5,)),),
        stored={"etag": "e"},
    )
    assert read_receipt(receipt.as_json()) == receipt
    assert read_receipt(replace(receipt, unit=2).as_json()) != receipt
    for raw in (b"", b"[]", b"{}", b'{"tensors": [1]}', b'{"unit": 1, "tensors": []}'):
        assert read_receipt(raw) is None

"""The benchmark of a device runs where there is none, and says whose bytes it got."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import gpu
from raymerge.kernels.torch_kernels import TorchKernels


def measured(where: Path, *flags: str) -> tuple[int, str]:
    small = ("--device", "cpu:0", "--model", "tiny", "--repeat", "1", "--tile", "4096")
    found = CliRunner().invoke(gpu.main, [*small, "--where", str(where), *flags])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def test_every_stage_has_a_rate_and_every_merge_the_cpu_s_bytes(tmp_path: Path) -> None:
    code, printed = measured(tmp_path, "--depth", "1", "--depth", "2", "--json")
    found = json.loads(printed)

    assert (code, found["device"], found["tile_elements"]) == (0, "cpu:0", 4096)
    stages = {row["stage"]: row for row in found["stages"]}
    assert all(row["gbps"] > 0 for row in stages.values())
    assert stages["copy on the device"]["of_device_copy"] == 1.0
    kernels = ("span", "gram", "histogram, upper bits", "histogram, lower bits", "delta, trimmed")
    assert {f"kernel: {name}" for name in kernels} < stages.keys()
    assert stages["read a cached file"]["bytes"] == 4 * 2 * 4096
    assert stages["write and hash"]["bytes"] == 2 * 4096
    assert [row["method"] for row in found["merges"]] == list(gpu.MERGES)
    for row in found["merges"]:
        assert row["same_bytes"]
        assert row["cpu_gbps"] > 0
        assert all(row["device_gbps"][depth] > 0 for depth in ("1", "2"))


def test_the_table_has_a_line_for_each(tmp_path: Path) -> None:
    code, printed = measured(tmp_path)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].endswith("a tile of 4,096 elements")
    assert sum(line.endswith("  the CPU's") for line in lines) == len(gpu.MERGES)


def test_other_bytes_than_the_cpu_s_end_it_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = TorchKernels._narrow  # noqa: SLF001

    def off(kernels: TorchKernels, tile, inputs, values, out, dtype):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202, PLR0917
        return narrow(kernels, tile, inputs, values * 1.01, out, dtype)

    monkeypatch.setattr(TorchKernels, "_narrow", off)
    code, printed = measured(tmp_path)
    assert code == 1
    assert "DIFFER" in printed

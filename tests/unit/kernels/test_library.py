"""The native library: found, checked, every instruction set measured."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llavakit.core.errors import CapacityError, ConfigError, MissingDependencyError
from llavakit.core.version import __version__
from llavakit.kernels.library import ABI_VERSION, InstructionSet, KernelLibrary, Rate, find_library, load_library

LEVELS = load_library().supported
SHORT_S = 0.01
# Small enough to be quick, large enough for one slice of 4 MiB a thread.
BUFFER_BYTES = 32 << 20


def test_portable_is_always_there_and_best_is_supported() -> None:
    assert LEVELS[0] is InstructionSet.PORTABLE
    assert load_library().best is LEVELS[-1]


def test_names_agree_with_the_header() -> None:
    library = load_library()
    assert [library.get_name(level) for level in InstructionSet] == [level.name.lower() for level in InstructionSet]
    with pytest.raises(ConfigError, match="instruction set 6"):
        library.get_name(len(InstructionSet))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())
def test_reads_are_measured_on_every_level(level: InstructionSet) -> None:
    for num_threads, num_streams in ((1, 1), (2, 2), (1, 3), (2, 16)):
        speed = load_library().measure_read(
            num_bytes=BUFFER_BYTES, num_threads=num_threads, num_streams=num_streams, seconds=SHORT_S, level=level
        )
        # Slower than a disk or faster than any cache would mean that the loop was removed or mistimed.
        assert 0.05 < speed < 20_000


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())
def test_rates_are_measured_where_the_instruction_exists(level: InstructionSet) -> None:
    library = load_library()
    found = {rate: library.measure_rate(rate, num_threads=1, seconds=SHORT_S, level=level) for rate in Rate}
    assert (found[Rate.INT8_DOT] is not None) == (level is not InstructionSet.PORTABLE)
    assert (found[Rate.BF16_DOT] is not None) == (level is InstructionSet.AVX512_BF16)
    for value in found.values():
        # One core: no processor does fewer than 0.05 or more than 100,000 thousand million a second.
        assert value is None or (math.isfinite(value) and 0.05 < value < 100_000)


@pytest.mark.parametrize(
    "level", [InstructionSet.AVX2, InstructionSet.AVX512_VNNI], ids=lambda level: level.name.lower()
)
def test_int8_is_counted_in_operations(level: InstructionSet) -> None:
    # Four products where float32 has one: twice the rate at least, whatever the clock does between the two.
    # Other programs may take the processor from either, but hardly from the same one every time.
    if level not in LEVELS:
        pytest.skip("this processor has no such instructions")
    library = load_library()
    ratios = []
    for _ in range(5):
        int8 = library.measure_rate(Rate.INT8_DOT, num_threads=1, seconds=SHORT_S, level=level)
        fp32 = library.measure_rate(Rate.FP32_FMA, num_threads=1, seconds=SHORT_S, level=level)
        assert int8 is not None
        assert fp32 is not None
        ratios.append(int8 / fp32)
    assert max(ratios) > 1.5


@pytest.mark.parametrize(
    ("num_bytes", "num_threads", "num_streams", "seconds"),
    [
        (BUFFER_BYTES, 0, 1, SHORT_S),
        (BUFFER_BYTES, 5000, 1, SHORT_S),
        (BUFFER_BYTES, 1, 0, SHORT_S),
        (BUFFER_BYTES, 1, 17, SHORT_S),
        (BUFFER_BYTES, 1, 1, 0.0),
        (BUFFER_BYTES, 1, 1, -1.0),
        (BUFFER_BYTES, 1, 1, math.nan),
        (BUFFER_BYTES, 1, 1, math.inf),
        (1 << 20, 1, 1, SHORT_S),
        (-1, 1, 1, SHORT_S),
        (1 << 50, 1, 1, SHORT_S),
    ],
)
def test_read_out_of_range_is_refused(num_bytes: int, num_threads: int, num_streams: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        load_library().measure_read(
            num_bytes=num_bytes, num_threads=num_threads, num_streams=num_streams, seconds=seconds
        )


@pytest.mark.skipif("LLAVAKIT_TEST_KERNELS" in os.environ, reason="sanitizers reserve terabytes of addresses")
def test_read_beyond_memory_is_a_capacity_error() -> None:
    # In a process of its own, which may have 2 GiB of addresses: whether a machine promises more memory than
    # it has is its own affair.
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from llavakit.core.errors import CapacityError
from llavakit.kernels.library import load_library
try:
    load_library().measure_read(num_bytes=8 << 30, num_threads=1, num_streams=1, seconds=0.01)
except CapacityError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "8589934592 bytes" in done.stdout
    assert "not enough memory" in done.stdout


def test_rate_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 threads"):
        load_library().measure_rate(Rate.FP32_FMA, num_threads=0, seconds=SHORT_S)


@pytest.mark.skipif(len(LEVELS) == len(InstructionSet), reason="this processor runs every instruction set")
def test_level_of_another_processor_is_refused() -> None:
    missing = next(level for level in InstructionSet if level not in LEVELS)
    with pytest.raises(CapacityError, match=missing.name.lower()):
        load_library().measure_rate(Rate.FP32_FMA, num_threads=1, seconds=SHORT_S, level=missing)


def test_absent_library_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="pip install"):
        find_library([tmp_path])


def test_file_that_is_no_library_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "libllavakit_kernels.so"
    path.write_text("not a library")
    with pytest.raises(MissingDependencyError, match="cannot be loaded"):
        KernelLibrary(find_library([tmp_path]))


def _compile(tmp_path: Path, source: str) -> Path:
    code, library = tmp_path / "fake.c", tmp_path / "libllavakit_kernels.so"
    code.write_text(source)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(code)], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no C compiler on this machine")
    return library


def test_library_of_another_release_is_refused_with_both_numbers(tmp_path: Path) -> None:
    source = 'const char *llk_version(void) { return "9.8.7"; }\nint llk_abi_version(void) { return 1; }\n'
    with pytest.raises(MissingDependencyError, match=r"9\.8\.7") as caught:
        KernelLibrary(_compile(tmp_path, source))
    assert __version__ in str(caught.value)


@pytest.mark.parametrize("missing", ["llk_abi_version", "llk_isa_name"])
def test_library_without_a_function_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    source = f'const char *llk_version(void) {{ return "{__version__}"; }}\n'
    if missing != "llk_abi_version":
        source += f"int llk_abi_version(void) {{ return {ABI_VERSION}; }}\n"
    with pytest.raises(MissingDependencyError, match=missing):
        KernelLibrary(_compile(tmp_path, source))

"""Find, load and check the native library.

In: nothing but the installed package. Out: a `KernelLibrary` with typed methods over the C interface of
``csrc/llavakit_kernels.h``. Guaranteed: the library belongs to this release, and every status becomes an
exception. It keeps no settings: the instruction set is an argument of each call.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

import numpy as np

from llavakit.core.errors import CapacityError, ConfigError, MissingDependencyError
from llavakit.core.version import __version__
from llavakit.kernels.structures import AttentionCall, DecoderCall, Matrix

__all__ = [
    "ABI_VERSION",
    "Activation",
    "InstructionSet",
    "KernelLibrary",
    "Rate",
    "find_library",
    "has_library",
    "load_library",
]

ABI_VERSION = 8

_FILE_NAMES = {"darwin": "libllavakit_kernels.dylib", "win32": "llavakit_kernels.dll"}
_BAD_ARGUMENT, _UNSUPPORTED, _NO_MEMORY, _NO_THREAD = 1, 2, 3, 4


class InstructionSet(IntEnum):
    """Levels the library can be built for, lowest first; the values are those of the C header."""

    PORTABLE = 0
    AVX2 = 1
    AVX2_VNNI = 2
    AVX512 = 3
    AVX512_VNNI = 4
    AVX512_BF16 = 5


class Rate(IntEnum):
    """Arithmetic instructions whose rate can be measured; the values are those of the C header."""

    FP32_FMA = 0
    BF16_DOT = 1
    INT8_DOT = 2


class Activation(IntEnum):
    """What a product may end with; the values are those of the C header."""

    NONE = 0
    QUICK_GELU = 1


class KernelLibrary:
    """The loaded native library.

    Parameters
    ----------
    path : Path
        The shared library file.

    Raises
    ------
    MissingDependencyError
        If the file cannot be loaded or belongs to another release of llavakit.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise MissingDependencyError(
                f"the native library {str(path)!r} cannot be loaded: {error}. It was probably built for another "
                "machine; reinstall llavakit here."
            ) from error
        self.path = path
        self._library = library
        # First: a library of another release may lack other functions too, and its number says more than their names.
        self._declare({"llk_version": (ctypes.c_char_p, []), "llk_abi_version": (ctypes.c_int32, [])})
        self._check_release()
        self._declare_all()

    def _declare_all(self) -> None:
        int32, int64, double = ctypes.c_int32, ctypes.c_int64, ctypes.c_double
        out, address = ctypes.POINTER(double), ctypes.c_void_p
        signatures: dict[str, tuple[object, list[object]]] = {
            "llk_isa_name": (ctypes.c_char_p, [int32]),
            "llk_isa_is_supported": (int32, [int32]),
            "llk_isa_best": (int32, []),
            "llk_set_team": (None, [address]),
            "llk_explain_bus_errors": (int32, [ctypes.c_char_p, int32]),
            "llk_measure_read": (int32, [int32, int64, int32, int32, double, out]),
            "llk_measure_rate": (int32, [int32, int32, int32, double, out]),
            "llk_dequantize": (int32, [int32, int32, address, int64, address]),
            "llk_matmul": (
                int32,
                [int32, int32, address, int64, int64, address, int64, address, int32, address, int64, int32],
            ),
            "llk_matmul_pair": (
                int32,
                [
                    int32,
                    ctypes.POINTER(Matrix),
                    address,
                    int32,
                    ctypes.POINTER(Matrix),
                    address,
                    address,
                    int64,
                    address,
                    int32,
                ],
            ),
            "llk_swiglu": (int32, [int32, address, address, int64, address, int32]),
            "llk_rms_norm": (int32, [int32, address, address, ctypes.c_float, int64, int64, address, int32]),
            "llk_rotary": (int32, [int32, address, address, address, int64, int64, int64, int32, address, int32]),
            "llk_round_blocks": (int32, [int32, address, int64, address, int32]),
            "llk_attention": (int32, [int32, ctypes.POINTER(AttentionCall), int32]),
            "llk_add_rms_norm": (
                int32,
                [int32, address, address, address, ctypes.c_float, int64, int64, address, int32],
            ),
            "llk_store_positions": (
                int32,
                [int32, address, int64, int64, int64, int32, address, int64, address, int32],
            ),
            "llk_decoder_scratch": (int64, [ctypes.POINTER(DecoderCall)]),
            "llk_decode": (int32, [int32, ctypes.POINTER(DecoderCall), int32]),
            "llk_quantize": (int32, [int32, int32, address, int64, int64, address, address, int32]),
        }
        self._declare(signatures)

    def _declare(self, signatures: dict[str, tuple[object, list[object]]]) -> None:
        for name, (result, arguments) in signatures.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise MissingDependencyError(
                    f"the native library {str(self.path)!r} has no function {name}; llavakit {__version__} needs it. "
                    "Reinstall llavakit."
                ) from error
            function.restype, function.argtypes = result, arguments

    def _check_release(self) -> None:
        version = self._library.llk_version().decode()
        abi_version = self._library.llk_abi_version()
        if (version, abi_version) != (__version__, ABI_VERSION):
            raise MissingDependencyError(
                f"the native library {str(self.path)!r} is of release {version} (interface {abi_version}), but this is "
                f"llavakit {__version__} (interface {ABI_VERSION}). Reinstall llavakit so that both are built together."
            )

    def set_team(self, parallel: ctypes._NamedFuncPointer | None) -> None:
        """Compute on another library's threads from now on: ``GOMP_parallel`` or its like. None: on our own."""
        self._library.llk_set_team(ctypes.cast(parallel, ctypes.c_void_p) if parallel is not None else None)

    def explain_bus_errors(self, message: str, exit_status: int) -> None:
        """End with a message and a status, from now on, when a mapped file has become shorter or unreadable."""
        self._library.llk_explain_bus_errors(message.encode(), exit_status)

    @functools.cached_property
    def best(self) -> InstructionSet:
        """The highest instruction set that this build holds and this processor runs."""
        return InstructionSet(self._library.llk_isa_best())

    @property
    def supported(self) -> tuple[InstructionSet, ...]:
        """Every instruction set that this build holds and this processor runs, lowest first."""
        return tuple(level for level in InstructionSet if self._library.llk_isa_is_supported(level))

    def get_name(self, level: int) -> str:
        """Return the library's own name of an instruction set."""
        name = self._library.llk_isa_name(level)
        if name is None:
            raise ConfigError(f"instruction set {level} does not exist; known: 0 to {len(InstructionSet) - 1}.")
        return str(name.decode())

    def measure_read(
        self, *, num_bytes: int, num_threads: int, num_streams: int, seconds: float, level: InstructionSet | None = None
    ) -> float:
        """Measure streaming reads from memory.

        Parameters
        ----------
        num_bytes : int
            Size of the buffer read again and again; several times the last cache, and at least 4 MiB a thread.
        num_threads : int
            1 to 4096.
        num_streams : int
            Places in which each thread walks at once, 1 to 16.
        seconds : float
            At least this long.
        level : InstructionSet, optional
            The best one by default.

        Returns
        -------
        float
            10^9 bytes per second, all threads together.

        Raises
        ------
        ConfigError
            If an argument is out of range.
        CapacityError
            If the instruction set, the memory or a thread is not to be had.
        """
        chosen = self.best if level is None else level
        result = ctypes.c_double()
        status = self._library.llk_measure_read(
            chosen, num_bytes, num_threads, num_streams, seconds, ctypes.byref(result)
        )
        what = f"reading {num_bytes} bytes with {num_threads} threads of {num_streams} streams for {seconds} s"
        _check_status(status, what, chosen)
        return result.value

    def measure_rate(
        self, rate: Rate, *, num_threads: int, seconds: float, level: InstructionSet | None = None
    ) -> float | None:
        """Measure one arithmetic instruction on registers only.

        Returns
        -------
        float or None
            10^9 operations per second, all threads together; None when the instruction set has no such
            instruction.

        Raises
        ------
        ConfigError
            If an argument is out of range.
        CapacityError
            If a thread is not to be had, or this processor lacks the instruction set.
        """
        chosen = self.best if level is None else level
        if chosen not in self.supported:
            _check_status(_UNSUPPORTED, f"measuring {rate.name}", chosen)
        result = ctypes.c_double()
        status = self._library.llk_measure_rate(chosen, rate, num_threads, seconds, ctypes.byref(result))
        if status == _UNSUPPORTED:
            return None
        _check_status(status, f"measuring {rate.name} with {num_threads} threads for {seconds} s", chosen)
        return result.value

    def dequantize(
        self, weights: np.ndarray, block_type: int, num_weights: int, *, level: InstructionSet | None = None
    ) -> np.ndarray:
        """Expand stored weights to float32.

        Parameters
        ----------
        weights : uint8 array
            Whole blocks, contiguous, at any address.
        block_type : int
            As numbered in GGUF.
        num_weights : int

        Returns
        -------
        float32 array of ``num_weights``

        Raises
        ------
        ConfigError
            If the number is no multiple of the block length.
        CapacityError
            If this machine lacks the instruction set, or the library the type.
        """
        chosen = self.best if level is None else level
        out = np.empty(num_weights, dtype=np.float32)
        status = self._library.llk_dequantize(chosen, block_type, weights.ctypes.data, num_weights, out.ctypes.data)
        _check_status(status, f"expanding {num_weights} weights of type {block_type}", chosen)
        return out

    def quantize(
        self,
        weights: np.ndarray,
        block_type: int,
        out: np.ndarray,
        *,
        num_threads: int,
        importance: np.ndarray | None = None,
        level: InstructionSet | None = None,
    ) -> None:
        """Quantize rows of weights.

        Parameters
        ----------
        weights : float32 array of shape (num_rows, k)
            Contiguous, finite.
        block_type : int
            As numbered in GGUF.
        out : uint8 array
            Contiguous, of the bytes of all blocks.
        num_threads : int
        importance : float32 array of shape (k,), optional
            What a squared error of a column weighs; positive. Ones by default.
        level : InstructionSet, optional
            The best one by default; the bytes do not depend on it.

        Raises
        ------
        ConfigError
            If the rows are no whole blocks.
        CapacityError
            If this machine lacks the instruction set, or the library the type.
        """
        chosen = self.best if level is None else level
        num_rows, k = weights.shape
        status = self._library.llk_quantize(
            chosen, block_type, weights.ctypes.data, num_rows, k, importance.ctypes.data if importance is not None else
            None, out.ctypes.data, num_threads,
        )  # fmt: skip
        _check_status(status, f"quantizing ({num_rows}, {k}) weights to type {block_type}", chosen)

    def matmul(
        self,
        weights_address: int,
        block_type: int,
        x_address: int,
        out_address: int,
        *,
        num_rows: int,
        num_columns: int,
        k: int,
        num_threads: int,
        bias_address: int | None = None,
        activation: Activation = Activation.NONE,
        level: InstructionSet | None = None,
    ) -> None:
        """Multiply float32 rows (num_rows, k) with stored weights (num_columns, k), and finish.

        ``out = activation(x @ weights.T + bias)``, with a bias of num_columns float32.

        The addresses are of contiguous memory that the caller keeps alive: this is called hundreds of times a token,
        and looking through array objects would be a good part of its time. Rows are rounded to 8 bits as
        ``csrc/llavakit_kernels.h`` says.

        Raises
        ------
        ConfigError
            If a size is out of range.
        CapacityError
            If memory is short, this machine lacks the instruction set, or the library the type.
        """
        chosen = self.best if level is None else level
        status = self._library.llk_matmul(
            chosen, block_type, weights_address, num_columns, k, x_address, num_rows, bias_address, activation,
            out_address, num_columns, num_threads,
        )  # fmt: skip
        if status:
            _check_status(status, f"the product ({num_rows}, {k}) x ({num_columns}, {k}) of type {block_type}", chosen)

    def matmul_pair(
        self,
        first: Matrix,
        second: Matrix,
        x_address: int,
        out_address: int,
        *,
        num_rows: int,
        num_threads: int,
        first_bias_address: int | None = None,
        second_bias_address: int | None = None,
        activation: Activation = Activation.NONE,
        level: InstructionSet | None = None,
    ) -> None:
        """Multiply as ``matmul`` does with ``activation``, and the result with another matrix, to the same bits.

        Raises
        ------
        ConfigError
            If a size is out of range, or the matrices do not fit together.
        CapacityError
            If memory is short, this machine lacks the instruction set, or the library a type.
        """
        chosen = self.best if level is None else level
        status = self._library.llk_matmul_pair(
            chosen, first, first_bias_address, activation, second, second_bias_address, x_address, num_rows,
            out_address, num_threads,
        )  # fmt: skip
        shapes = f"({num_rows}, {first.k}) x ({first.num_columns}, {first.k}) x ({second.num_columns}, {second.k})"
        _check_status(status, f"the products {shapes} of types {first.type} and {second.type}", chosen)

    def swiglu(
        self,
        gate_address: int,
        up_address: int,
        out_address: int,
        *,
        count: int,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """``out = silu(gate) * up`` over ``count`` float32 numbers; ``out`` may be one of the others."""
        chosen = self.best if level is None else level
        status = self._library.llk_swiglu(chosen, gate_address, up_address, count, out_address, num_threads)
        if status:
            _check_status(status, f"SwiGLU of {count} numbers", chosen)

    def rms_norm(
        self,
        x_address: int,
        weight_address: int,
        out_address: int,
        *,
        eps: float,
        num_rows: int,
        width: int,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """Root-mean-square norm of float32 rows (num_rows, width)."""
        chosen = self.best if level is None else level
        status = self._library.llk_rms_norm(
            chosen, x_address, weight_address, eps, num_rows, width, out_address, num_threads
        )
        if status:
            _check_status(status, f"the norm of ({num_rows}, {width})", chosen)

    def rotary(
        self,
        x_address: int,
        cosines_address: int,
        sines_address: int,
        out_address: int,
        *,
        num_positions: int,
        num_heads: int,
        head_dim: int,
        is_interleaved: bool,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """Rotate float32 (num_positions, num_heads, head_dim) by angles (num_positions, head_dim / 2)."""
        chosen = self.best if level is None else level
        status = self._library.llk_rotary(
            chosen, x_address, cosines_address, sines_address, num_positions, num_heads, head_dim, is_interleaved,
            out_address, num_threads,
        )  # fmt: skip
        if status:
            _check_status(status, f"rotating ({num_positions}, {num_heads}, {head_dim})", chosen)

    def round_blocks(
        self,
        x_address: int,
        out_address: int,
        *,
        num_blocks: int,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """Round blocks of 32 float32 numbers to Q8_0, 34 bytes each."""
        chosen = self.best if level is None else level
        status = self._library.llk_round_blocks(chosen, x_address, num_blocks, out_address, num_threads)
        if status:
            _check_status(status, f"rounding {num_blocks} blocks", chosen)

    def attention(self, call: AttentionCall, *, num_threads: int, level: InstructionSet | None = None) -> None:
        """Attention as ``csrc/llavakit_kernels.h`` describes the call.

        Raises
        ------
        ConfigError
            If a size is out of range, a row has fewer keys than a causal call has queries, or a block is named that
            there is none of.
        CapacityError
            If memory is short, or this machine lacks the instruction set.
        """
        chosen = self.best if level is None else level
        status = self._library.llk_attention(chosen, ctypes.byref(call), num_threads)
        if status:
            _check_status(status, f"attention of ({call.batch}, {call.num_queries}, {call.num_heads})", chosen)

    def add_rms_norm(
        self,
        x_address: int,
        added_address: int,
        weight_address: int,
        out_address: int,
        *,
        eps: float,
        num_rows: int,
        width: int,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """``x += added``, then ``out`` the root-mean-square norm of float32 rows (num_rows, width); out may be x."""
        chosen = self.best if level is None else level
        status = self._library.llk_add_rms_norm(
            chosen, x_address, added_address, weight_address, eps, num_rows, width, out_address, num_threads
        )
        _check_status(status, f"the norm of a sum of ({num_rows}, {width})", chosen)

    def store_positions(
        self,
        x_address: int,
        slots_address: int,
        out_address: int,
        *,
        num_rows: int,
        num_heads: int,
        head_dim: int,
        kv_type: int,
        head_stride: int,
        num_threads: int,
        level: InstructionSet | None = None,
    ) -> None:
        """Write float32 keys or values (num_rows, num_heads, head_dim) into a cache; ``slots`` are int64."""
        chosen = self.best if level is None else level
        status = self._library.llk_store_positions(
            chosen, x_address, num_rows, num_heads, head_dim, kv_type, slots_address, head_stride, out_address,
            num_threads,
        )  # fmt: skip
        _check_status(status, f"storing ({num_rows}, {num_heads}, {head_dim}) keys or values", chosen)

    def count_decoder_scratch(self, call: DecoderCall) -> int:
        """Float32 numbers that a pass through a decoder needs besides its tokens.

        Raises
        ------
        ConfigError
            If a size is out of range, or the groups are not the tokens one after the other.
        """
        count = int(self._library.llk_decoder_scratch(ctypes.byref(call)))
        if count < 0:
            _check_status(_BAD_ARGUMENT, f"a pass of {call.num_tokens} tokens", self.best)
        return count

    def decode(self, call: DecoderCall, *, num_threads: int, level: InstructionSet | None = None) -> None:
        """Pass tokens through a decoder as ``csrc/llavakit_kernels.h`` describes the call.

        Raises
        ------
        ConfigError
            If a size is out of range or a matrix has another shape.
        CapacityError
            If memory is short, or this machine lacks the instruction set or the library a type.
        """
        chosen = self.best if level is None else level
        status = self._library.llk_decode(chosen, ctypes.byref(call), num_threads)
        if status:
            _check_status(status, f"a pass of {call.num_tokens} tokens", chosen)


def find_library(folders: Iterable[str | Path] | None = None) -> Path:
    """Find the shared library of this installation.

    Parameters
    ----------
    folders : iterable of str or Path, optional
        Where to look. By default every folder of this package: an editable installation keeps the compiled
        file apart from the sources, and both folders are part of the package then.

    Raises
    ------
    MissingDependencyError
        If no folder holds the file.
    """
    name = _FILE_NAMES.get(sys.platform, "libllavakit_kernels.so")
    if folders is None:
        folders = sys.modules[__package__ or "llavakit.kernels"].__path__
    searched = [Path(folder) for folder in folders]
    for folder in searched:
        if (folder / name).is_file():
            return folder / name
    places = ", ".join(repr(str(folder)) for folder in searched)
    raise MissingDependencyError(
        f"the native library {name!r} is not in {places}. llavakit was installed without a C++ compiler, or copied "
        "rather than installed: install a compiler (Debian and Ubuntu: apt install g++) and run `pip install .` in "
        "llavakit's folder."
    )


@functools.cache
def load_library() -> KernelLibrary:
    """Load the native library of this installation, once.

    Raises
    ------
    MissingDependencyError
        If it is absent, cannot be loaded, or belongs to another release.
    """
    return KernelLibrary(find_library())


@functools.cache
def has_library() -> bool:
    """Whether this installation was built with its native library."""
    try:
        find_library()
    except MissingDependencyError:
        return False
    return True


def _check_status(status: int, what: str, level: InstructionSet) -> None:
    if status == _BAD_ARGUMENT:
        raise ConfigError(f"{what} is out of range; csrc/llavakit_kernels.h gives the limits.")
    if status == _UNSUPPORTED:
        raise CapacityError(f"{what} failed: this machine does not run {level.name.lower()}. Choose a lower level.")
    if status == _NO_MEMORY:
        raise CapacityError(f"{what} failed: not enough memory. Free some, or measure with a smaller buffer.")
    if status == _NO_THREAD:
        raise CapacityError(f"{what} failed: the system refused a thread. Raise its limit or use fewer threads.")
    if status:
        raise CapacityError(f"{what} failed with the unknown status {status}; library and program do not match.")

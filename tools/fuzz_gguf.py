"""Open mutated GGUF files until told to stop: ``python tools/fuzz_gguf.py --num 1000000``.

Starts from valid files and changes bytes, numbers, lengths and ends. A file may be read or refused with one of
llavakit's errors; anything else, or a file that takes more than a second or memory far beyond its size, is written to
the folder of failures and ends the run with status 1. ``--pairs`` opens whole models instead of small files: the pair
of llava:tiny, one of its two headers changed. With the atheris package, ``--atheris`` lets coverage choose the changes
of small files.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from llavakit.conversion.convert import convert
from llavakit.core.errors import FormatError, LlavakitError
from llavakit.weights.gguf_checkpoint import open_gguf_checkpoint
from llavakit.weights.gguf_file import open_gguf

_EXTREMES = (0, 1, 7, 31, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
_SLOW_S = 1.0  # of the processor
_MAX_GROWTH_KIB = 256 * 1024


def make_seed(num_keys: int, num_tensors: int) -> bytes:
    """Return a small valid file with every kind of value and several types of tensors."""
    body = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)
    kinds = ((4, "<I", 7), (6, "<f", 0.5), (7, "<B", 1), (10, "<Q", 9))
    for idx in range(num_keys):
        body += _text(f"key.{idx}")
        if idx % 3 == 0:
            body += struct.pack("<I", 8) + _text("llama" * idx)
        elif idx % 3 == 1:
            body += struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("bc")
        else:
            kind, code, number = kinds[idx % len(kinds)]
            body += struct.pack("<I", kind) + struct.pack(code, number)
    offset = 0
    for idx in range(num_tensors):
        type_id, num_bytes = ((0, 1024), (8, 272), (12, 144))[idx % 3]
        body += _text(f"blk.{idx}.weight") + struct.pack("<IQIQ", 1, 256, type_id, offset)
        offset += -(-num_bytes // 32) * 32
    return body + b"\0" * (-len(body) % 32) + b"\1" * offset


def make_seeds() -> list[bytes]:
    """Return small valid files of several sizes."""
    return [make_seed(keys, tensors) for keys in (0, 3, 12) for tensors in (1, 5)]


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change a file in one to eight places."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", rng.choice(_EXTREMES))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", rng.choice(_EXTREMES) & 0xFFFFFFFF)
        elif kind == 4:
            del data[at : at + rng.randint(1, 40)]
        else:
            start = rng.randrange(len(data)) if data else 0
            data[at:at] = data[start : start + rng.randint(1, 60)]
    return bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.1 else bytes(data)


def check(content: bytes, file: Path) -> str:
    """Open one file; return what became of it, or raise."""
    file.write_bytes(content)
    try:
        opened = open_gguf(file)
    except FormatError:
        return "refused"
    for tensor in opened.tensors.values():
        if tensor.start + tensor.num_bytes > len(content):
            raise AssertionError(f"{tensor.name} lies behind the end")
    return "read"


class SmallFiles:
    """Opens one small file at a time."""

    def __init__(self, folder: Path) -> None:
        self._seeds = make_seeds()
        self._file = folder / "mutated.gguf"

    def make(self, rng: random.Random) -> bytes:
        """Return the next file."""
        return mutate(rng.choice(self._seeds), rng)

    def check(self, content: bytes) -> str:
        """Open it; say what became of it."""
        return check(content, self._file)


class Pairs:
    """Opens the pair of llava:tiny, one of the headers changed; what follows the headers is zeros that take no room."""

    def __init__(self, folder: Path) -> None:
        files = convert("llava:tiny", folder / "tiny.gguf", type_name="q8_0").files
        opened = [open_gguf(file) for file in files]
        self._sizes = [file.stat().st_size for file in files]
        self._headers = [
            file.read_bytes()[: min(tensor.start for tensor in one.tensors.values())]
            for file, one in zip(files, opened, strict=True)
        ]
        self._files = [folder / "text.gguf", folder / "mmproj.gguf"]
        for idx, header in enumerate(self._headers):
            self._write(idx, header)

    def _write(self, idx: int, header: bytes) -> None:
        with self._files[idx].open("wb") as file:
            file.write(header)
            file.truncate(max(self._sizes[idx], len(header)))

    def make(self, rng: random.Random) -> bytes:
        """Return the next header, after the number of its file."""
        idx = rng.randrange(2)
        return bytes([idx]) + mutate(self._headers[idx], rng)

    def check(self, content: bytes) -> str:
        """Open the pair; say what became of it."""
        idx = content[0]
        self._write(idx, content[1:])
        try:
            open_gguf_checkpoint(self._files[0], projector=self._files[1])
        except LlavakitError:
            return "refused"
        finally:
            self._write(idx, self._headers[idx])
        return "read"


def fuzz(num: int, seed: int, failures: Path, *, are_pairs: bool) -> int:
    """Run and report; return the number of failures."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        target = Pairs(Path(folder)) if are_pairs else SmallFiles(Path(folder))
        for idx in range(num):
            content = target.make(rng)
            started = time.process_time()
            try:
                outcome = target.check(content)
            except Exception as error:  # whatever it is, it is what is looked for
                outcome = f"FAILED: {type(error).__name__}"
            if time.process_time() - started > _SLOW_S:
                outcome = "FAILED: slow"
            outcomes[outcome] += 1
            if outcome.startswith("FAILED"):
                failures.mkdir(parents=True, exist_ok=True)
                (failures / f"{seed}-{idx}.gguf").write_bytes(content)
            if idx % 50_000 == 0:
                print(f"{idx:,} of {num:,} files, {dict(outcomes)}", file=sys.stderr, flush=True)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if growth > _MAX_GROWTH_KIB:
        outcomes["FAILED: memory"] += 1
    print(
        f"{num:,} files in {time.monotonic() - began:.0f} s: {dict(outcomes)}, memory grew by {growth / 1024:.0f} MiB"
    )
    return sum(count for outcome, count in outcomes.items() if outcome.startswith("FAILED"))


def _memory_folder() -> Path | None:
    """Return a folder in memory, where the system has one: files are written a thousand times a second."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None


def run_atheris(arguments: list[str]) -> None:
    """Let coverage choose the mutations; ends at the first failure."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    folder = Path(tempfile.mkdtemp(dir=_memory_folder()))
    file, seeds = folder / "mutated.gguf", folder / "seeds"
    seeds.mkdir()
    for idx, content in enumerate(make_seeds()):
        (seeds / str(idx)).write_bytes(content)
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments, str(seeds)], lambda content: check(content, file))
    atheris.Fuzz()


def main() -> None:
    """Fuzz until told to stop; the exit status says whether a file got through."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=100_000, help="files to open")
    parser.add_argument("--pairs", action="store_true", help="whole models instead of small files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"), help="folder for files that fail")
    parser.add_argument("--atheris", nargs=argparse.REMAINDER, help="use atheris, with its own options after this one")
    options = parser.parse_args()
    if options.atheris is not None:
        run_atheris(options.atheris)
    elif fuzz(options.num, options.seed, options.failures, are_pairs=options.pairs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

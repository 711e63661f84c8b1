"""Write a GGUF pair of a published shape with random weights: the size and the work of the real one, no sense.

python -m benchmarks.random_pair --shape 7b --type q4_k_m FILE.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llavakit.conversion.random_pair import write_random_pair
from llavakit.kernels.machine import count_cpus
from llavakit.planner.models import published_config


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=("7b", "13b"), required=True)
    parser.add_argument("--type", required=True, help="a mixture, as llavakit convert takes it")
    options = parser.parse_args()
    config = published_config(f"llava:{options.shape}")
    write_random_pair(options.file, config, options.type, num_threads=count_cpus())


if __name__ == "__main__":
    main()

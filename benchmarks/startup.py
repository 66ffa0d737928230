"""Time until `sever` has answered what needs no torch, against the time of `python -c "import torch"`.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 9

Both are run as whole processes, in turn, by the same interpreter; the first run of each, which fills the
disk cache, is not counted. Help and a slip in a file's name take a fraction of the time of torch alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from goals import head, print_ratios

TORCH = 'python -c "import torch"'
AT_MOST = {"sever --help": 0.2, "sever train -c none.yml": 0.4}  # of the time of TORCH


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Time of answers without torch against `{TORCH}`.")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each command (default 7)")
    rounds = parser.parse_args().rounds
    commands = {
        **{name: [*sever_command(), *name.split()[1:]] for name in AT_MOST},
        TORCH: [sys.executable, "-c", "import torch"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        run_seconds(command)
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(run_seconds(command))

    print(f"{f'{rounds} rounds, in turn':32s} ms, median   lowest – highest")
    for name, of_rounds in seconds.items():
        spread = f"{1000 * min(of_rounds):.0f} – {1000 * max(of_rounds):.0f}"
        print(f"  {name:30s} {1000 * statistics.median(of_rounds):10.0f}   {spread:>16s}")
    print(f"\n{head('time / import torch')}")
    for name, at_most in AT_MOST.items():
        ratios = [answer / torch for answer, torch in zip(seconds[name], seconds[TORCH], strict=True)]
        print_ratios(f"{name} / import torch", ratios, at_most=at_most)


def sever_command() -> list[str]:
    """The console script beside the interpreter; where there is none, the package as a module."""
    script = Path(sys.executable).with_name("sever.exe" if os.name == "nt" else "sever")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "sever"]


def run_seconds(command: list[str]) -> float:
    """The seconds from starting a command to its end."""
    start = time.perf_counter()
    subprocess.run(command, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

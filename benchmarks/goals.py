"""All benchmarks in turn, and at the end one table: each goal beside what was measured.

python benchmarks/goals.py
python benchmarks/goals.py data/severstal    training sheets in the place of drawn ones
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_ROWS = "SEVER_BENCHMARK_ROWS"  # the environment variable that names the file for the table
SCRIPTS = ("startup", "first_step", "loader", "codec", "tune", "predict", "scaling", "gpu")
OF_DATA = ("loader",)  # take the folder of the data


def print_ratios(
    what: str, ratios: Sequence[float], at_least: float | None = None, at_most: float | None = None
) -> None:
    """Print the median of some rounds' ratios with their range and the goal, and keep it for the table.

    Args:
        what: of what to what.
        ratios: of each round.
        at_least: the goal, or
        at_most: the goal; without either there is none.
    """
    middle = statistics.median(ratios)
    goal = f"at least {at_least:g}" if at_least else f"at most {at_most:g}" if at_most else ""
    missed = (at_least is not None and middle < at_least) or (at_most is not None and middle > at_most)
    row = [what, f"{middle:.2f}", f"{min(ratios):.2f} – {max(ratios):.2f}", goal, "missed" if missed else ""]
    print(line(row))
    if path := os.environ.get(_ROWS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def line(row: Sequence[str]) -> str:
    """A row of the table: what, median, lowest to highest, goal, whether it was missed."""
    what, middle, spread, goal, missed = row
    return f"  {what:60s} {middle:>8s} {spread:>18s}   {goal:14s} {missed}".rstrip()


def head(title: str) -> str:
    """The line above such rows."""
    return line([title, "median", "lowest – highest", "goal", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="All benchmarks in turn, and their goals in one table.")
    parser.add_argument("data_dir", nargs="?", help="training sheets; default: sheets are drawn")
    data_dir = parser.parse_args().data_dir
    import torch

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        rows.touch()
        for script in SCRIPTS:
            if script == "gpu" and not torch.cuda.is_available():
                continue
            print(f"\n{script}.py\n{'-' * 60}", flush=True)
            command = [sys.executable, str(Path(__file__).with_name(f"{script}.py"))]
            command += [data_dir] if data_dir and script in OF_DATA else []
            if subprocess.run(command, env={**os.environ, _ROWS: str(rows)}).returncode:
                sys.exit(f"goals.py: {script}.py failed")
        table = [json.loads(text) for text in rows.read_text(encoding="utf-8").splitlines()]
    print(f"\n{head('all together')}")
    print("\n".join(map(line, table)))
    if not torch.cuda.is_available():
        print("  The goals of gpu.py need a GPU.")


if __name__ == "__main__":
    main()

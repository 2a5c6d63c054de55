"""Writes docs/proof-elsewhere.csv: `python tests/elsewhere/prove.py [PATTERN] [--table FILE]`.

Each entry of the catalogue whose library is installed is proved; the table is continued if it exists.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import warnings
from dataclasses import asdict, fields
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import torch
from catalogue import catalogue
from claims import Findings, prove

DEFAULT = Path(__file__).parents[2] / "docs" / "proof-elsewhere.csv"


def main() -> None:
    """Prove what the table does not have yet, and print each line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("pattern", nargs="*", help="only entries with one of these in their names")
    arguments.add_argument("--table", type=Path, default=DEFAULT)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table: Path = options.table
    known = {row["model"] for row in csv.DictReader(table.open())} if table.exists() else set()
    entries = [e for e in catalogue().values() if e.name not in known and e.installed]
    if options.pattern:
        entries = [e for e in entries if any(part in e.name for part in options.pattern)]
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Findings)], lineterminator="\n")
        if not known:
            writer.writeheader()
        for entry in entries:
            torch.manual_seed(0)
            line = prove(entry.name, *entry.factory())
            writer.writerow(asdict(line))
            file.flush()
            print(
                f"{line.status} {line.model:<42} {line.sites:>4} sites {line.seconds:5.1f} s  {line.reasons}",
                flush=True,
            )


if __name__ == "__main__":
    main()

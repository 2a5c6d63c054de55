"""Draws conversion.svg: `pfa-convert resnet50 --rule pfa` with what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = ["resnet50", "--rule", "pfa"]
WIDTH = 92


def draw(path: Path) -> None:
    """Run the command and write its output as a picture."""
    done = subprocess.run(
        [sys.executable, "-m", "pfa_convert", *COMMAND],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": str(WIDTH)},
    )
    console = Console(record=True, width=WIDTH, file=sys.stderr, highlight=False, soft_wrap=True)
    console.print(Text(f"$ pfa-convert {' '.join(COMMAND)}", style="bold"))
    console.print(Text(done.stdout.rstrip()))
    # Fonts come from the reader's own machine: nothing is fetched when the picture is shown.
    drawing = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="pfa-convert"), flags=re.DOTALL)
    path.write_text(drawing.replace("Fira Code, monospace", "monospace"), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("conversion.svg"))

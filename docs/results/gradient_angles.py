"""The angle between each weight's gradient and backpropagation's, by block and kind of matrix.

    python docs/results/gradient_angles.py EXPERIMENT RUNS DATA

of a vision transformer, such as cifar10-vit-short. RUNS has a folder for each variant, with last.safetensors.
The results, gradient-angles.json and gradient-angles.png, go into the experiment's folder beside this file.
"""

import json
import subprocess
import sys
from pathlib import Path

from pfa_convert.reporting.figures import pyplot_without_display, write
from pfa_convert.reporting.style import ANGLES, RIGHT_ANGLE

KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def inspected(folder: Path, data: str) -> dict[str, float | None]:
    """Return the angle of each site's gradient on the first batch that the run is judged by."""
    command = [sys.executable, "-m", "pfa_convert", "inspect", str(folder), "--data", data, "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {site: facts["gradient_angle_deg"] for site, facts in said.items()}


def draw(angles: dict[str, dict[str, float | None]], epochs: int, path: Path) -> None:
    """Draw a row of cells for each kind of matrix, a column for each block, a panel for each variant."""
    columns = -(-len(angles) // 2)
    figure, panels = pyplot_without_display().subplots(
        2, columns, figsize=(2.6 * columns, 5.4), layout="constrained"
    )
    for axes, (variant, by_site) in zip(panels.flat, angles.items(), strict=False):
        depth = 1 + max(int(site.split(".")[1]) for site in by_site if site.startswith("blocks."))
        cells = [[by_site[f"blocks.{block}.{kind}"] for block in range(depth)] for kind in KINDS]
        image = axes.imshow(cells, vmin=0, vmax=RIGHT_ANGLE, cmap=ANGLES, aspect="auto")
        for row, values in enumerate(cells):
            for column, value in enumerate(values):
                colour = "white" if value > 50 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        ends = f"patches {by_site['patch_embed.proj']:.0f}, head {by_site['head']:.0f}"
        axes.set(
            title=variant if variant == "pfa-o" else variant.replace("-", ", "), xlabel=f"block\n({ends})"
        )
        axes.set_xticks(range(depth))
        axes.set_yticks(range(len(KINDS)), [kind.split(".")[1] for kind in KINDS])
    for axes in panels.flat[len(angles) :]:
        axes.axis("off")
    label = "angle to backpropagation's gradient (degrees)"
    bar = figure.colorbar(image, ax=panels, label=label, extend="max", shrink=0.7)
    bar.set_ticks(range(0, 91, 30))
    figure.suptitle(f"Gradient angles by block and kind of matrix, after {epochs} epochs")
    write(figure, path)


if __name__ == "__main__":
    experiment, runs, data = sys.argv[1:]
    order = ("pfa-o", "kp", "pfa", "pfa-blocks", "pfa-decay", "usf", "pfa-xavier", "fa", "dfa", "pfa-literal")
    folders = {variant: Path(runs) / f"{experiment}-{variant}" / "seed-0" for variant in order}
    results = {v: f / "result.json" for v, f in folders.items() if (f / "result.json").is_file()}
    epochs = {json.loads(result.read_text())["epochs"] for result in results.values()}.pop()
    angles = {variant: inspected(folders[variant], data) for variant in results}
    written = Path(__file__).parent / experiment / "gradient-angles.json"
    written.write_text(json.dumps(angles, indent=1) + "\n")
    draw(angles, epochs, written.with_suffix(".png"))

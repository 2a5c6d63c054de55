"""What a user gets: a wheel that works on its own, and documentation that builds without a warning."""

import html
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from pfa_convert.rules import RULES

ROOT = Path(__file__).parents[1]


def run(*command, **arguments):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_installs_and_does_the_main_job_with_its_recipes(tmp_path):
    pytest.importorskip("hatchling")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # The dependencies come from this environment; the package and its recipes from the wheel alone.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    paths = [site, *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = tmp_path / "venv" / "bin" / "pfa-convert"
    where = run(
        python, "-c", "import pfa_convert; print(pfa_convert.__file__)", cwd=tmp_path, env=environment
    )
    assert where.startswith(str(tmp_path))
    converted = run(command, "resnet18", "--rule", "pfa", cwd=tmp_path, env=environment)
    assert "21 sites converted" in converted and "unchanged to the last bit" in converted
    assert "mnist-sparse" in run(command, "recipes", cwd=tmp_path, env=environment)
    trained = run(
        command, "train", "digits-mlp-pfa", "--set", "train.epochs=1", cwd=tmp_path, env=environment
    )
    assert "top-1" in trained
    run(command, "report", "runs", cwd=tmp_path, env=environment)
    assert (tmp_path / "report" / "index.html").exists()


def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run(
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-d",
        tmp_path / "site",
        cwd=ROOT,
        env=environment,
    )
    for name in RULES:
        rule = RULES[name]
        page = html.unescape((tmp_path / "site" / "rules" / name / "index.html").read_text())
        assert rule.source in page and rule.title in page
        assert all(f"<code>{option}</code>" in page for option in rule.model_fields)
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert all(f".{name}" in api for name in ("convert.convert", "coupling.couple", "loop.train"))
    assert "--override" in (tmp_path / "site" / "commands" / "index.html").read_text()

"""Takes the pictures of index.md: `python docs/screenshots.py demo notebook`, or one of them.

Both are what a newcomer sees: the demo is run in a terminal that records, the notebook by a kernel.
They take some minutes, and timings in them are of the machine at that time.
"""

import base64
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from rich.console import Console

from flexdraft_jax.evaluation.demo import DemoSettings, run_demo
from flexdraft_jax.evaluation.loading import load_models

FIGURES = Path(__file__).with_name("figures")
_NOTEBOOK = Path(__file__).parents[1] / "infer" / "flexdraft_colab.ipynb"
# What the pages show of the notebook's plots: the first ones.
_PLOTS = ("notebook_acceptance.png", "notebook_tau.png")


def demo() -> None:
    """The terminal of `make demo`."""
    console = Console(
        record=True, force_terminal=True, color_system="standard", width=110, highlight=False
    )
    run_demo(load_models(), console, DemoSettings())
    svg = console.export_svg(title="make demo", unique_id="demo")
    # The picture asks for no font from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    (FIGURES / "demo.svg").write_text(svg)


def notebook() -> None:
    """The plots of the notebook, in order."""
    cells = nbformat.read(_NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(cells, timeout=1800, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in cells.cells for output in cell.get("outputs", [])]
    plots = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    for name, plot in zip(_PLOTS, plots, strict=False):
        (FIGURES / name).write_bytes(base64.b64decode(plot))
    for output in outputs:
        print(output.get("text", ""), end="")


if __name__ == "__main__":
    for picture in sys.argv[1:]:
        {"demo": demo, "notebook": notebook}[picture]()

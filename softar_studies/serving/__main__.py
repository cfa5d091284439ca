"""Serve a model behind an OpenAI-compatible address, for any tool that uses one.

    python -m softar_studies.serving data/checkpoints/tales-hard --port 8000

It answers on this machine only; docs/serving.md says what. tornado comes with Jupyter.
"""

import argparse
import asyncio

from softar_lab.generation.generate import generate

from .http import serve
from .served import Served, load

parser = argparse.ArgumentParser(description="Serve a model to this machine.")
parser.add_argument("model", help="a checkpoint's folder, what load_pretrained() reads, or smollm2")
parser.add_argument("--port", type=int, default=0, help="0: any free one; the address is printed")
parser.add_argument("--name", help="what the model is called; by default as its folder")
for axis in ("collapse", "schedule", "feedback"):
    parser.add_argument(f"--{axis}", help=f"the {axis} with which it writes, as in generate()")


def main(arguments: list[str] | None = None) -> None:
    """Load the model, try how it writes, and serve it."""
    given = parser.parse_args(arguments)
    axes = {axis: getattr(given, axis) for axis in ("collapse", "schedule", "feedback")}
    choices = {axis: value for axis, value in axes.items() if value is not None}
    try:
        model, name = load(given.model)
        served = Served(model, given.name or name, choices)
        generate(model, "", 2, **choices)  # choices that do not suit the model fail here
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(serve(served, given.port, lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()

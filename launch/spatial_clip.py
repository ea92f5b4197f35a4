"""The console script: `spatial-clip COMMAND ...` is `python -m launch.COMMAND ...`."""

import runpy
import sys

COMMANDS = {
    "convert": "reads a checkpoint of any known kind, checks it, writes it; --inspect says what is in it",
    "data": "data build: folders, tar or parquet files into a TFDS data set that training streams",
    "export": "Hugging Face folder of a CLIP and its adapter, with the PyTorch twin",
    "evaluate": "the table of a model that is there",
    "table": "mean and spread over runs",
    "train": "adapts a CLIP on unlabeled pictures, measures, reports, exports",
}


def main() -> None:
    """Runs the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:10}{what}" for command, what in COMMANDS.items())
        sys.exit(f"usage: spatial-clip COMMAND ...\n{listed}\n`spatial-clip COMMAND --help` says more.")
    sys.argv = [f"spatial-clip {name}", *sys.argv[2:]]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()

"""Writes a CLIP, with its adapter and its PyTorch twin, as a Hugging Face folder.

python -m launch.export --adapter=runs/quickstart --folder=exported [--onnx] [--merge=0.5]
"""

from absl import app, flags

from launch.cli import quiet_logs, user_errors
from spatial_clip_jax.api import load
from spatial_clip_jax.convert.onnx import save_onnx

MODEL = flags.DEFINE_string("model", "tiny", "What `load` takes: tiny, a folder, a file, a model of the Hub.")
ADAPTER = flags.DEFINE_string(
    "adapter", None, "Workdir of launch.train or exported folder; none exports the CLIP alone."
)
ONNX = flags.DEFINE_bool("onnx", False, "Write dense.onnx too: the dense map in one pass, at any size.")
MERGE = flags.DEFINE_float("merge", None, "Share of the adapter, 0 to 1, in a plain CLIP that it is merged into.")
FOLDER = flags.DEFINE_string("folder", None, "Where to write.", required=True)


def main(arguments: list[str]) -> None:
    """Loads and writes."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    quiet_logs()
    with user_errors():
        model = load(MODEL.value, ADAPTER.value)
        if MERGE.value is None:
            model.save_pretrained(FOLDER.value)
        else:
            model.save_merged(FOLDER.value, MERGE.value)
        if ONNX.value:
            save_onnx(FOLDER.value)
    print(f"written: {FOLDER.value}")


if __name__ == "__main__":
    app.run(main)

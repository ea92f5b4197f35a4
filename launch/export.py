"""Writes a CLIP, with its adapter and the adapter's PyTorch twin, as a Hugging Face folder.

python -m launch.export --adapter=runs/quickstart --folder=exported
"""

from absl import app, flags

from launch.cli import quiet_logs, user_errors
from spatial_clip_jax.api import load

MODEL = flags.DEFINE_string("model", "tiny", "The bundled model, or a local folder in Hugging Face's CLIP format.")
ADAPTER = flags.DEFINE_string(
    "adapter", None, "Workdir of launch.train or exported folder; none exports the CLIP alone."
)
FOLDER = flags.DEFINE_string("folder", None, "Where to write.", required=True)


def main(arguments: list[str]) -> None:
    """Loads and writes."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    quiet_logs()
    with user_errors():
        load(MODEL.value, ADAPTER.value).save_pretrained(FOLDER.value)
    print(f"written: {FOLDER.value}")


if __name__ == "__main__":
    app.run(main)

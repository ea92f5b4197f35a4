"""The one-pass dense tower as an ONNX graph, from the PyTorch twin: any batch and any size in whole patches."""

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from spatial_clip_jax.convert.source import read_json

ONNX_FILES = ("dense.onnx", "dense.onnx.data")  # the second holds the weights where they exceed 2 GB
INPUT, OUTPUT = "pixel_values", "dense"
OPSET = 18


def save_onnx(folder: str | Path, readout: str | None = None) -> Path:
    """Write dense.onnx into a folder that `save_pretrained` wrote, and return its path.

    The graph takes normalised fp32 `pixel_values` (b, 3, H, W) and gives `dense` (b, H/p, W/p, e), unit vectors; what
    the sides have beyond whole patches is cut off. readout: as the twin's. The graph's metadata hold the read-out, the
    patch size and the normalisation. ValueError without the packages of `.[onnx]`, or for an unknown read-out.
    """
    folder = Path(folder)
    model = _twin(folder)
    name = model.readout(readout)
    program = _exported(model, name)
    program.model.metadata_props.update(_facts(folder, model, name))
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as staging:
        program.save(str(Path(staging, ONNX_FILES[0])))
        for file in ONNX_FILES:
            folder.joinpath(file).unlink(missing_ok=True)
        for written in Path(staging).iterdir():
            written.chmod(0o644)
            written.replace(folder / written.name)
    return folder / ONNX_FILES[0]


def _twin(folder: Path) -> Any:
    """The folder's model in PyTorch, fp32."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        from spatial_clip_jax.convert import torch_twin
    except ImportError as error:
        raise ValueError(f"ONNX needs more packages ({error}): pip install 'spatial-clip-jax[onnx]'.") from error
    places = read_json(folder / "config.json", "config.json").get("auto_map")
    name = str(places.get("AutoModel")).rpartition(".")[2] if isinstance(places, dict) else ""
    twin = getattr(torch_twin, name, None) if name.startswith("Spatial") else None
    if twin is None:
        raise ValueError(
            f"{folder} has no PyTorch twin, from which the graph is made: write it with save_pretrained, of a CLIP or "
            "SigLIP (other families have none)."
        )
    return twin.from_pretrained(folder).float().eval()  # our class, not the folder's code


def _exported(model: Any, readout: str) -> Any:
    """The graph of one pass, with batch, height and width left open."""
    import torch

    class DenseTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model.read(pixel_values, readout)

    patch, free = model.vision.embeddings.patch_size, torch.export.Dim.DYNAMIC
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):  # they report each absent package and folded node
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            DenseTower(),
            (torch.zeros(2, 3, 3 * patch, 4 * patch),),  # sizes unlike one another: equal ones would be taken for one
            dynamo=True,
            dynamic_shapes={INPUT: {0: free, 2: free, 3: free}},
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )


def _facts(folder: Path, model: Any, readout: str) -> dict[str, str]:
    processor = read_json(folder / "preprocessor_config.json", "preprocessor_config.json")
    return {
        "readout": readout,
        "patch_size": str(model.vision.embeddings.patch_size),
        "image_mean": json.dumps(processor["image_mean"]),
        "image_std": json.dumps(processor["image_std"]),
    }

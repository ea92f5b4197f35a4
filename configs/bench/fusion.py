"""The speed and memory of fusing sliding windows, against the tower alone and against PyTorch.

    python -m launch.bench --config=configs/bench/fusion.py --workdir=runs/bench              # ViT-B/16, random weights
    python -m launch.bench --config=configs/bench/fusion.py:model=tiny --workdir=runs/bench   # the bundled CLIP

Needs `.[torch]` for PyTorch's rows, which a section that is left out does without: --config.sections='("memory",)'.
About 12 minutes on two CPU cores; the table is in docs/performance.md. On a GPU:
--config.dtype=bfloat16 --config.batches='(1, 32, 256)'. The workdir gets bench.json.

    python -m launch.compile_for --config=configs/bench/fusion.py --topology=v5e:4x4 --workdir=runs/v5e

compiles the fusion for TPUs that are not here (--config.dtype=bfloat16 too).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

MODELS = {"clip_b16": "openai/clip-vit-base-patch16", "clip_l14": "openai/clip-vit-large-patch14", "tiny": "tiny"}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: model=clip_b16|clip_l14|tiny. The geometry of a CLIP, with random weights unless it is the bundled one."""
    name = parse_arg(arg, model="clip_b16")["model"]
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return ConfigDict(
        dict(
            geometry=MODELS[name],
            dtype="float32",
            # tower: global embeddings. fusion: against the tower alone. sliding: against PyTorch. latency: of one
            # picture. memory: within budgets. compilations: of mixed pictures, with the bundled CLIP.
            sections=("tower", "fusion", "sliding", "latency", "memory", "compilations"),
            repetitions=5,
            batches=(1, 4, 8),
            pyramid=dict(scales=(1.0, 1.5, 2.0), overlap=0.5, readout="clearclip"),
            side=448,
            phrases=21,
            compile_torch=True,
            latencies=20,
            memory=dict(
                budgets_gib=(1.0, 2.0, 4.0), side=2048, phrases=1000, scales=(2.0, 4.0, 2048 / 224), overlap=0.5
            ),
            pictures=200,
            # Of each device in `launch.compile_for`, which takes this config too.
            chip=dict(pictures=32, windows_at_once=64),
        )
    )

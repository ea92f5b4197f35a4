"""Pretraining, shrunk: it trains, resumes where it was, and writes a folder that both libraries load."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

import spatial_clip_jax as scj

ROOT = Path(__file__).parents[2]
SMALL = ("--config.tokenizer.captions=60", "--config.tokenizer.merges=40", "--config.validation_pictures=8")


def pretrain(workdir: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    config = "--config=configs/pretrain_tiny.py:steps=4,batch_size=8"
    command = [sys.executable, "-m", "launch.pretrain", config, *SMALL, *settings, f"--workdir={workdir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_pretrained_folder_loads_everywhere(tmp_path):
    done = pretrain(tmp_path, "--config.optimizer.warmup_steps=1", "--config.log_every=1")
    assert done.returncode == 0, done.stderr[-3000:]
    curve = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"contrastive", "caption_words", "batch_top1"} <= set().union(*curve)
    assert "evaluate/zero_shot_top1" in curve[-1]

    text, picture = "a photo of a red circle", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    theirs, ours = CLIPModel.from_pretrained(tmp_path / "export"), scj.load(tmp_path / "export")
    inputs = CLIPProcessor.from_pretrained(tmp_path / "export")(text=[text], images=[picture], return_tensors="pt")
    with torch.no_grad():
        output = theirs.eval()(**inputs)
    np.testing.assert_allclose(ours.encode_image(picture), output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(ours.encode_text([text]), output.text_embeds, atol=1e-5)

    again = pretrain(tmp_path, "--config.optimizer.warmup_steps=1", "--config.log_every=1")
    assert again.returncode == 0 and "going on from the checkpoint of step 4" in again.stderr

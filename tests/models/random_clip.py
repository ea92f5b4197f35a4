"""The independent reference: a small transformers CLIPModel with random weights, and a small tokenizer."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel

WORDS = ("<|startoftext|>", "<|endoftext|>")
MERGES = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>")]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*ALPHABET, *(c + "</w>" for c in ALPHABET), *("".join(pair) for pair in MERGES), *WORDS]
BOS, EOS = len(VOCABULARY) - 2, len(VOCABULARY) - 1
SIZES = [(32, 32), (64, 64), (24, 56)]  # native, larger, not square


def random_hf_clip(seed: int, **vision: object) -> CLIPModel:
    """fp32 CLIPModel whose every weight is drawn, so that no bias or norm can be forgotten unnoticed."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
            **vision,
        },
        projection_dim=48,
    )
    model = CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight") or "layrnorm.weight" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "embedding" in name:
                parameter.copy_(0.02 * noise)  # small, so that the norms' epsilon matters
            elif name != "logit_scale":
                parameter.copy_(0.1 * noise)
    return model


def random_pixels(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Two normalised pictures (2, H, W, 3)."""
    return np.random.default_rng(seed).standard_normal((2, *size, 3)).astype(np.float32)


def to_torch(pixels: np.ndarray) -> torch.Tensor:
    """Pixels in PyTorch's layout (b, 3, H, W)."""
    return torch.tensor(pixels).permute(0, 3, 1, 2)


def random_ids(seed: int = 0) -> np.ndarray:
    """Three rows of token ids that end early, late and at the last place, padded with end-of-text."""
    ids = np.random.default_rng(seed).integers(0, BOS, (3, 24)).astype(np.int32)
    ids[:, 0], ids[0, 5:], ids[1, 17:], ids[2, 23:] = BOS, EOS, EOS, EOS
    return ids


def write_tokenizer(path: Path) -> Path:
    """tokenizer.json of a byte-level BPE with CLIP's normaliser, pre-tokeniser and `</w>` suffix."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(VOCABULARY)},
            merges=MERGES,
            unk_token=WORDS[1],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens(list(WORDS))
    tokenizer.post_processor = processors.RobertaProcessing(
        (WORDS[1], EOS), (WORDS[0], BOS), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.save(str(path))
    return path

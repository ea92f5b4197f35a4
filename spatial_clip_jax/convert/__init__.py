"""Checkpoints in and out: Hugging Face folders, adapters, and their PyTorch twin."""

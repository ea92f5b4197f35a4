"""Measures a way of reading dense maps against pictures whose contents are known."""

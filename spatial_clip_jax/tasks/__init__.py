"""Answers from dense maps in text space: pure functions of arrays, with no model inside."""

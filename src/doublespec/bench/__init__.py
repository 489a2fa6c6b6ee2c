"""Measuring: the demo prompts and the benchmark."""

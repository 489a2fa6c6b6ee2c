"""Measuring: everything here is arithmetic on Steps, or a clock around a forward."""

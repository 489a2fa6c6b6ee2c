"""Training-free, bit-exact acceleration of large language models."""

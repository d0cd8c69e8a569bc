"""Blocks of Flax models that more than one family uses."""

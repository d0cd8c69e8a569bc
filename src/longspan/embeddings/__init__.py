"""Texts and files as vectors: sentence encoders, the main job that embeds files, search in what it made."""

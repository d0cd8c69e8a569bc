"""LongT5."""

"""Long runs: batches, progress, resumption after a crash, tables of results."""

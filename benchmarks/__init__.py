"""Speed and memory of longspan beside its peers. `make bench` runs all cases; see `harness.py`."""

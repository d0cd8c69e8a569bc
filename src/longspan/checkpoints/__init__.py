"""Reading and writing checkpoints: file resolution, formats, parameter names, reports."""

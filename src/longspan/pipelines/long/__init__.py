"""Documents longer than the model: rows and windows, and how what a model says of windows becomes one result."""

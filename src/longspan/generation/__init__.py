"""Text generation: settings and streamers for every framework, and the loops of PyTorch (`torch_*`)."""

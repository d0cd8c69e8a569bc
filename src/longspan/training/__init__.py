"""Fine-tuning: documents with labels, windows with targets, the loop, what it writes."""

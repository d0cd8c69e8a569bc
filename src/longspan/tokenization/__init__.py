"""Tokenizers over the `tokenizers` library: `AutoTokenizer`, `PreTrainedTokenizer`, `BatchEncoding`."""

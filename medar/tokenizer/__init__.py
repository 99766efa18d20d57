"""The tokenizer: a volume becomes a pyramid of tokens, coarse to fine, and comes back."""

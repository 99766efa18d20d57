"""The tokenizer: a 3D volume becomes a pyramid of tokens, coarse to fine, and comes back."""

"""The tokenizer: a 3D volume becomes a pyramid of tokens and comes back."""

"""Bundles: from training runs to a model in the box, and to the Hugging Face hub."""

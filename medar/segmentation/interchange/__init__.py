"""Weights to and from other people's networks: MONAI's, nnU-Net's, and MONAI bundles."""

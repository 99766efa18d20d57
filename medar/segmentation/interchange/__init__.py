"""Exchange of weights with MONAI, nnU-Net and MONAI bundles."""

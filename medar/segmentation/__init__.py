"""Segmentation: backbones, pretraining, fine-tuning with few labels, prediction on any file."""

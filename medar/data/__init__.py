"""Data sets: manifests, splits, checks, plans, prepared caches, loading and phantoms."""

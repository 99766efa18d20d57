"""Recipes: stages that run in order, are skipped if nothing has changed, and resume."""

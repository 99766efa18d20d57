"""Recipes: stages that are run in order, skipped when nothing has changed, and gone on with."""

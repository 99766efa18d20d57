"""Sections of the report about a run, grouped by subject; each is made by one function."""

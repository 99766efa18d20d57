"""Sections of the report about a run, grouped by subject; one function per section."""

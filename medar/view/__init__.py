"""Volumes and labels side by side in a browser: a local page, or one file to send."""

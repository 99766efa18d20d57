"""Pictures of volumes and runs; the only room that draws."""

"""Files on disk: writes that survive interruptions, reads that trust nothing, checkpoints and run directories."""

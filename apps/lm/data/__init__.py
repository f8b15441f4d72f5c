"""From sequence files to packed batches of tokens."""

"""The network and its configuration."""

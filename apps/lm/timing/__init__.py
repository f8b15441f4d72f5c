"""How fast a model is trained and asked on this machine, and how much memory that takes, by length."""

"""Log-likelihoods of sequences under a model."""

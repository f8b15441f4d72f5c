"""How well a model predicts sequences: perplexity, accuracy and calibration, next to baselines."""

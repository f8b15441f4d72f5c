"""The commands by name: each is a module of this package, imported when it runs."""

from __future__ import annotations

COMMANDS = {
    "train": "Train a model on your own sequences.",
    "score": "Score sequences: log-likelihood and perplexity.",
    "info": "Show what a trained model is.",
    "doctor": "Check this installation and this machine.",
    "completion": "Print a script that completes commands in your shell.",
}
COMPLETION_REQUEST = "_PROTPERF_COMPLETE"
"""Set by the shell when it asks how a command line may go on."""

"""The commands by name, each a module of this package that is imported when it runs, and their exit codes."""

from __future__ import annotations

COMMANDS = {
    "train": "Train a model on your own sequences.",
    "score": "Score sequences: log-likelihood and perplexity.",
    "variants": "Score variants of a protein: substitutions, deletions, insertions.",
    "scan": "Score every single change of a protein, as a table and a heat map.",
    "embed": "Embed sequences: vectors per sequence or per residue.",
    "generate": "Generate new sequences, or change a template.",
    "align": "Align a family that is not aligned, for baseline and --prior.",
    "baseline": "Count residues: a model to compare with, and to mix in.",
    "eval": "Evaluate a model: perplexity, accuracy, calibration, next to baselines.",
    "merge": "Join the tables of shards, and prove that nothing is missing.",
    "data": "Build, describe, divide and compare sets of sequences.",
    "convert": "Write a trained model for other libraries.",
    "info": "Show what a trained model is, or what is installed here.",
    "bench": "Time training and scoring on this machine, by length.",
    "doctor": "Check this installation and this machine.",
    "completion": "Print a script that completes commands in your shell.",
}
COMPLETION_REQUEST = "_PROTPERF_COMPLETE"
"""Set by the shell when it asks how a command line may go on."""
EXIT_DATA, EXIT_USAGE, EXIT_FILES, EXIT_RESOURCES, EXIT_REJECTED = 1, 2, 3, 4, 5

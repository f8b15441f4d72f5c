"""New sequences from a model: written left to right, or filled into a template."""

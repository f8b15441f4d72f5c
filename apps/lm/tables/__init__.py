"""Tables of dataclass rows: written in several formats, resumable, never half a table under its name."""

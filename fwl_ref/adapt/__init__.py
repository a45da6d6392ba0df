"""A real language model that adapts to the document it reads: ways to do so, side by side."""

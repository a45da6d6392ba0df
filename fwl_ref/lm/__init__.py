"""A language model on bytes with a fast weight block at its end, and what one does with it."""

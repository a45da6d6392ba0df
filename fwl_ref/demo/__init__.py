"""``make demo``: train two models on real text, read it in seven ways, report and draw it."""

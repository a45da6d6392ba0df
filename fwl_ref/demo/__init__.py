"""``make demo``: train two models on real text, read it in nine ways, report and draw it."""

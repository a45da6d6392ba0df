"""``make study``: what fast weights buy on real text, as a plan of runs and a page."""

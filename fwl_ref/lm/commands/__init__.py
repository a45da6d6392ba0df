"""``train``, ``evaluate`` and ``generate`` on the command line: options, and what they do."""

"""Is this installation sound (self-test), and is another implementation right (golden cases)?"""

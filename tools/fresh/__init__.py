"""The comparison with other people's programs, made afresh; ``python tools/peers.py fresh`` runs it.

What is here runs in an environment that has those programs, and imports nothing of fwl_ref: it reads the inputs of the cases in
``tests/peers``, calls the programs' public functions on them, differentiates by their own automatic differentiation and writes the answers.
``tools/peers.py`` compares them.
"""

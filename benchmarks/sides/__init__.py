"""The three programs that are compared, one file each, with the same three functions.

    load(problem, threads) -> work      work() -> loss, gradients {name: array}; none of a forward pass
    host(gradients)                     the gradients as NumPy arrays, in the layout of the weights
    versions()                          what a result must be reported with

and ``product(n)``, one n x n product in float32, where a side can be the measure of the machine.
None of them imports another, and each runs in a process of its own.
"""

"""Fast weight layers and dynamic evaluation, every gradient by hand, for any array library.

Start with ``fwl_ref.fwl`` (write and read), ``fwl_ref.dynamic_evaluation`` (what it is compared with and checked against) and
``fwl_ref.ops`` (what both are made of).
"""

__version__ = "0.1.0"

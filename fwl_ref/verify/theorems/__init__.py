"""The nineteen theorems on one small case each; ``table.py`` has them in their order."""

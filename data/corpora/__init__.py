"""One module per corpus; the docstring of each shows the tree it expects."""

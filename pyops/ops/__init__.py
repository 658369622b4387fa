"""One module per operator: its function, docstring and fake kernel."""

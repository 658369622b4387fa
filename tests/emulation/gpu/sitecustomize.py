"""Every Python that finds this folder has the emulated GPU, those that tests start too."""

import emulated_gpu  # noqa: F401  (first: what PyTorch asks while it is imported)

import pyops  # noqa: F401  (`python -m pyops` would find that of the folder it starts in)

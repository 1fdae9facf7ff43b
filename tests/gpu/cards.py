"""Where these tests run."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Without a GPU they are skipped; whoever works on them may run some in Triton's interpreter."""

"""The environment that DeepSpeed reads when it is imported, in the processes that tests start."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

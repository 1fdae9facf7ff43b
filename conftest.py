"""Tests choose the CPU, also on a machine with a GPU, and so do the processes that they start.

Two ranks on one GPU would take ``cuda:1``, which is not there. It is said here, before anything
imports torch. Tests of GPUs leave theirs visible: they run alone, with REGPLUG_GPU=1 set.
"""

import os

if not os.environ.get("REGPLUG_GPU"):
    # Not "", which on Windows unsets it.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["ACCELERATE_USE_CPU"] = "true"

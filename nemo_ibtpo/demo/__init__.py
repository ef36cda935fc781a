"""The whole method on a laptop: a small base model, IB-TPO at TP2 x PP2 on CPU ranks, before and after.

``python -m nemo_ibtpo.demo`` makes its own base model (``base_model``) out of worked solutions (``solutions``) and
trains it with the recipe ``tiny``; ``python -m nemo_ibtpo.demo.smollm2`` takes a real language model out of a
package and trains it with the recipe ``smollm2-135m``. Both start the same command line under torchrun that a user
would (``launch``) and read what the run wrote (``summary``).
"""

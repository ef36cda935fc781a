"""For people who come from NeMo: NeMo's ``hydra_runner`` and ``exp_manager`` around a run, and jobs for NeMo-Run.

Only ``toolkit.py`` imports nemo_toolkit and lightning, only ``jobs.py`` nemo_run, both where they are used: the
package works without any of them.
"""

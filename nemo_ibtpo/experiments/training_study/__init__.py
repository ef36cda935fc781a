"""``nemo-ibtpo study``: arms that learn the same tasks from the same models, side by side.

``settings`` reads the YAML of a study, ``run`` trains what is missing, ``results`` gathers what the runs left into
one small file, ``estimates`` turns it into figures with intervals, ``figures`` draws and ``report`` writes.
"""

"""Metrics, protocols, data sets and reports.

``metrics`` has the measures, ``protocols`` and ``vots`` say how each data set uses them, ``datasets`` finds masks on
disk, ``run`` scores them and ``reports`` writes the result down.
"""

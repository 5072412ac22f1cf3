"""``neuroalign report``: one page that shows what runs found, in a file of its own that works offline and prints.

``runs`` reads run folders, ``page`` says what a page is made of and writes it; every other module makes one section
of it: a function ``section(runs)`` that returns a ``Section``, or None where the runs have nothing of the kind.
"""

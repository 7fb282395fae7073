"""From the sound of a file to a transcript of which every second is accounted for.

``audio`` decodes, ``plan`` cuts into chunks, ``engine`` hears one, ``stitch`` joins them, ``transcript`` writes files.
"""

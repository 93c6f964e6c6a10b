"""`raymerge doctor`: try what a merge would do at a place, with a megabyte, and say what is wrong.

report     what was found, frozen; and the visit that collects it
sources    a place to read from
folders, objects, repositories    places to write to
rounds     one place after another, each within its time
"""

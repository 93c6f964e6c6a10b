"""A run of the real schedule over a cluster that is only described: `raymerge simulate`.

    plan -> demands of each unit ---.
    fleet -> workers, lines, rates --+-> play: schedule.Schedule, by the clock of events -> figures

Who gets which unit is decided by the object that decides it in a merge. What is modelled is time:
how long a unit takes beside the others of its node.
"""

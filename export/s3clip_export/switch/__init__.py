"""The switch point: up to which height of a person super-resolution is worth its time, measured.

A bundle's own graphs embed every LR tracklet of a data set both ways. One rule is sought, "super-resolve up
to a height", for queries and gallery alike, so a bucket of heights is judged by two rankings that differ in
it alone: with the rule's height at its top, and at its bottom. From the tallest bucket down super-resolution
is switched off while even the upper end of its gain's interval stays below what it has to bring; the first
bucket in which it may bring that much ends the search. Super-resolution everywhere, the paper's method, so
stays unless it is measured to be wrong. As the order of these tests is fixed and the first that fails ends
them, the level of each is the level of all.

The command is `s3clip-bench gate`; what it measures and the manifest keeps is the switch.
"""

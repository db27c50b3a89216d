"""Marks for a folder of submissions, each run in a process of its own: see minirl.drills.grading.grade.

    the grader (verdicts, reports)  --JSON lines-->  a server that has imported torch  --forks-->  one submission

The grader judges numbers, values and gradients, that came out of a submission's process. So nothing that a submission
patches, ends or fills reaches the verdict, and nothing is ever unpickled. It is a guard against accidents and pranks, and
no jail: minirl.drills.grading.confine says what holds on which system.
"""

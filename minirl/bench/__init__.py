"""How fast the library is on a CPU, beside TRL and transformers: `python -m minirl bench`.

    workloads   the frozen pieces of work, and the goals
    ours        our side: the loops of the library, as a user calls them
    peers       their side: TRL's trainers and transformers' generate, with their fastest settings for a CPU
    worker      a process that holds one side of one workload, and does a unit of it when it is told to
    measure     two workers that take turns, and what becomes of their times
    flops       the same work counted, without a clock
    command     the command line, the table and the JSON

The two sides live in processes of their own and take turns: ours, theirs, ours, theirs. That is as good as turns within
one process against a machine that is busy now and then, and better in three ways: a peak of memory belongs to one side,
one library's settings do not reach the other, and two versions of TRL can be measured (PPO left it after 1.12).

No ratio is printed before both sides were seen to compute the same thing: see `ours` and `peers`, which answer the same
questions about the same weights and the same rows, and `measure.disagreement`.
"""

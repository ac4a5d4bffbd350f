"""The three intermediate representations above LLVM: one SSA core, one text form, one dialect a level.

In processing order: ``graph`` (what is computed), ``sched`` (how the work is cut up), ``tile`` (one block's program).
"""

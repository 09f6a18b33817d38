"""A table with a part of its rows in memory and the rest on disk, against the same with all of it in memory.

The two run in processes of their own, in turns, each with a copy of the table. The one with a part is in a
control group that limits its memory to the budget beside what it takes without a table, or the page cache
would hide the disk. The other one maps its copy, all of which is in the page cache. Both stage a batch while
the one before computes, as a runtime does.
"""

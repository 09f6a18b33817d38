"""The embedded system: the home folder, all planes in one process, and the runtime in a child process.

Belongs here: what runs HMI on one machine. Forbidden here: output, except that of ``hmi up``.
"""

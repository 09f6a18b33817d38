"""The embedded default: the home folder, the composition of the planes, and the children they need.

Belongs here: what runs HMI on one machine. Forbidden here: printing, except what ``hmi up`` says of itself.
"""

"""``hmi demo``: the main job from empty folder to bill, on the examples of this repository.

Belongs here: what the demonstration does and shows, through the same interfaces that users have.
Forbidden here: anything that reaches past them into the planes.
"""
